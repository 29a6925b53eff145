"""Everything ``current.checkpoint`` offers, tried while the store is closed and after it opened; the test judges."""

import json
import os
import pickle
import shutil

from metaflow import FlowSpec, checkpoint, current, step


def why(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def write(path, text):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


class ApiFlow(FlowSpec):
    @checkpoint(temp_dir_root="roots/temporary")
    @step
    def start(self):
        seen = self.seen = {}
        here = current.checkpoint
        seen["directory"] = os.path.relpath(here.directory)
        with open(os.environ["GATE"], "w") as gate:
            gate.write("PUT,POST:hang")

        write("single", "alone")
        first = here.save("single", name="file", metadata={"n": 0})
        write(os.path.join(here.directory, "state"), "one")
        os.symlink("state", os.path.join(here.directory, "link"))
        os.mkdir(os.path.join(here.directory, "empty"))
        second = here.save(metadata={"n": 1}, storage_format="tar", snapshot="copy")
        write("handed-over/state", "kept")
        third = here.save("handed-over", name="second", latest=False)
        shutil.rmtree("handed-over")
        self.reference = third

        seen["is dict"] = [isinstance(first, dict), type(pickle.loads(pickle.dumps(first))).__name__]
        seen["json"] = json.loads(json.dumps(first)) == first
        seen["pending"] = [first.done(), first.error, first.state in ("ADMITTED", "UPLOADING")]
        seen["wait"] = why(lambda: first.wait(0.2))
        seen["flush"] = why(lambda: here.flush(0.2))
        seen["status"] = here.status()
        seen["list while closed"] = [[c["name"], c["state"]] for c in here.list()]
        here.load(second, "loaded-while-closed")
        seen["loaded while closed"] = sorted(os.listdir("loaded-while-closed"))

        os.mkfifo("fifo")
        os.makedirs("with-fifo")
        os.mkfifo("with-fifo/pipe")
        seen["mistakes"] = {
            "missing": why(lambda: here.save("no-such-path")),
            "fifo": why(lambda: here.save("fifo")),
            "fifo inside": why(lambda: here.save("with-fifo")),
            "slash": why(lambda: here.save("single", name="a/b")),
            "newline": why(lambda: here.save("single", name="a\nb")),
            "format": why(lambda: here.save("single", storage_format="zip")),
            "snapshot": why(lambda: here.save("single", snapshot="magic")),
            "reference": why(lambda: here.load({"key": first["key"].replace(".file.", ".other.")}, "x")),
            "key's name": why(lambda: here.generate_key("a/b")),
            "key's version": why(lambda: here.generate_key("a", -1)),
            "dots": why(lambda: here.load(first["key"].replace("/artifacts/", "/artifacts/../"), "x")),
        }

        os.unlink(os.environ["GATE"])
        here.flush()
        seen["states"] = [reference.state for reference in (first, second, third)]
        seen["done"] = [third.wait(60) is third, third.done()]
        seen["list"] = [[c["name"], c["state"]] for c in here.list()]
        seen["by name"] = [c["key"] == first["key"] for c in here.list(name="file")]
        seen["by attempt"] = len(here.list(attempt=1))
        seen["namespace"] = [c["pathspec"] == second["pathspec"] for c in here.list(full_namespace=True)]
        seen["contradiction"] = why(lambda: here.list(within_task=True, full_namespace=True))
        seen["status after"] = here.status()
        here.load(second["key"])
        directory = here.directory
        with open(os.path.join(directory, "state")) as file:
            link = os.readlink(os.path.join(directory, "link"))
            seen["loaded"] = {"names": sorted(os.listdir(directory)), "link": link, "state": file.read()}
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ApiFlow()
