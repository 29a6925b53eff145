"""Directories and files in both storage formats, and what comes back."""

import os
import pathlib

from metaflow import Checkpoint, FlowSpec, checkpoint, current, step
from seen import outcome, saw, told, tree, write

FILES = {
    "model.bin": "weights",
    "deep/er/optimizer.pt": "moments",
    "deep/.metadata": "dotted",
    ".metadata": "DCP's",
    "with space and ü.txt": "unicode",
    "empty": "",
}


class FormatsFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        self.saved = {}

        def save(what, path, **options):
            for storage_format in ("files", "tar"):
                label = f"{what} as {storage_format}"
                kind, result = outcome(current.checkpoint.save, path, storage_format=storage_format, **options)
                if kind == "ok":
                    self.saved[label] = result
                    result = told(result, "version_id", *(["size"] if storage_format == "tar" else []))
                saw(f"save: {label}", result if kind == "ok" else kind)
                saw(f"FileNotFoundError: {label}", kind == "failed" and "FileNotFoundError" in result)

        folder = write("out/checkpoint-1", FILES)
        for name in FILES:
            os.utime(os.path.join(folder, name), (1_000_000_000, 1_000_000_000))
        save("a directory", folder)
        save("a directory, with a slash", folder + "/", name="slash")
        save("a path object", pathlib.Path(folder))
        save("an absolute path", os.path.abspath(folder))
        save("a file", os.path.join(folder, "model.bin"))
        save("a file as a path object", pathlib.Path(folder, "model.bin"))
        save("an empty file", os.path.join(folder, "empty"))
        save("a directory with an empty one", write("out/hollow", {"full/file": "x", "hollow/": None}))
        save("an empty directory", write("out/nothing", {"./": None}))
        save("what is not there", "out/missing")
        write(current.checkpoint.directory, {"state": "of the step"})
        save("no path", None)
        saw("size of a tar", self.saved["a directory as tar"]["size"])
        saw("an unknown format", "ValueError" in outcome(current.checkpoint.save, folder, storage_format="zip")[1])
        self.next(self.end)

    @step
    def end(self):
        for label, reference in self.saved.items():
            with Checkpoint() as into:
                into.load(reference)
                saw(f"load: {label}", tree(into.directory))
                if label.startswith("a directory as"):
                    saw(f"times: {label}", int(os.stat(os.path.join(into.directory, "model.bin")).st_mtime))
                    saw(f"links: {label}", os.path.islink(os.path.join(into.directory, "model.bin")))


if __name__ == "__main__":
    FormatsFlow()
