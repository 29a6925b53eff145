"""Directories with symbolic links, as Hugging Face, LoRA scripts and Lightning leave them."""

import os

from metaflow import Checkpoint, FlowSpec, checkpoint, current, step
from seen import outcome, saw, tree, write


def link(path, target):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(target, path)


class LinksFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        write("cache/blobs", {"3f1a": "weights", "77c0": "{}"})
        link("cache/snapshots/rev/model.safetensors", "../../blobs/3f1a")
        link("cache/snapshots/rev/config.json", "../../blobs/77c0")
        write("base", {"model.safetensors": "base weights"})
        write("lora", {"adapter.safetensors": "adapter"})
        link("lora/base", os.path.abspath("base"))
        write("lightning", {"epoch=3.ckpt": "epoch 3"})
        link("lightning/last.ckpt", "epoch=3.ckpt")
        write("dangling", {"file": "there"})
        link("dangling/gone", "nowhere")

        self.saved = {}
        for folder in ("cache/snapshots/rev", "lora", "lightning", "dangling"):
            for storage_format in ("files", "tar"):
                label = f"{folder} as {storage_format}"
                kind, result = outcome(current.checkpoint.save, folder, storage_format=storage_format)
                saw(f"save: {label}", kind)
                if kind == "ok":
                    self.saved[label] = result
        self.next(self.end)

    @step
    def end(self):
        # On another machine the originals are not there.
        for folder in ("cache", "base", "lora", "lightning", "dangling"):
            os.rename(folder, f"{folder}.gone")
        for label, reference in self.saved.items():
            with Checkpoint() as into:
                into.load(reference)
                saw(f"load: {label}", tree(into.directory))
                last = os.path.join(into.directory, "last.ckpt")
                if os.path.lexists(last):
                    saw(f"last.ckpt: {label}", os.path.islink(last) and os.readlink(last) == "epoch=3.ckpt")


if __name__ == "__main__":
    LinksFlow()
