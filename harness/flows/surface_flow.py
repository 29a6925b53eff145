"""What flows written for metaflow-checkpoint do with its interface. ``same`` is what they see in both environments."""

import json
import os
import subprocess
import sys
from pathlib import Path

from metaflow import Checkpoint, FlowSpec, Task, checkpoint, current, retry, step

#: A callback of a trainer that is used in the step's process and in subprocesses.
CALLBACK = """
import os, sys
from metaflow import Checkpoint, current
checkpoint = current.checkpoint if current.is_running_flow else Checkpoint(init_dir=True)
with open(os.path.join(checkpoint.directory, "state"), "w") as file:
    file.write("from a callback")
checkpoint.save(name="callback", metadata={"rank": 1})
"""


def write(path, text="text"):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    return path


def facts(found):
    """What of an object handed out is the same in every run."""
    return [found.name, found.attempt, int(found.version_id), found.metadata, found.size, found.storage_format]


class SurfaceFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(temp_dir_root="relative/root")
    @step
    def start(self):
        here = current.checkpoint
        if current.retry_count == 0:
            write(os.path.join(here.directory, "state"), "attempt 0")
            here.save(name="before", metadata={"epoch": 3})
            raise RuntimeError("The retry loads it")
        same = self.same = {}
        ours = self.ours = {}
        same["loaded"] = [here.is_loaded, os.listdir(here.directory), facts(here.info)]
        same["info"] = [here.info.pathspec.split("/")[2:], here.info.key[-9:], here.info.url.endswith(here.info.key)]
        same["info as dict"] = here.info.to_dict()["metadata"]
        self.info = here.info

        # Positions, defaults, and what a path may be.
        write("out/file", "1234")
        made = [
            here.save("out", "by-position", {"a": 1}, False, "tar"), here.save("out", metadata={}),
            here.save(Path("out/file"), metadata=None), here.save("out", name="keywords", latest=False),
            Checkpoint().save("out/file", {"a": 2}, False, "positions", "tar"), Checkpoint().save(Path("out")),
        ]  # fmt: skip
        same["saved"] = [[type(m["key"]).__name__, m["name"], m["metadata"], m["storage_format"]] for m in made]
        writer = Checkpoint()
        key = writer.generate_key("generated")
        same["generated"] = [key == writer.save("out", name="generated")["key"], writer.generate_key("x", 7)[-5:]]
        same["identifier"] = here.task_identifier == key.split("/")[-2]

        # Listing, by place and by name.
        task = f"{current.flow_name}/{current.run_id}/start/{current.task_id}"
        same["by name"] = [c["name"] for c in here.list("keywords")]
        same["attempt 0"] = [c["metadata"] for c in here.list(None, None, 0)]
        same["the task's"] = sorted(c["name"] for c in Checkpoint().list("before", Task(task), 0))
        same["of an object"] = sorted(c["name"] for c in here.list(task=Task(task, attempt=0)))
        same["namespace"] = "keywords" in [c["name"] for c in Checkpoint().list(None, None, None, True)]
        (entry,) = Checkpoint().list("keywords", None, None, False, False)
        same["as objects"] = [entry.name, entry.key == made[3]["key"], entry.to_dict()["type"]]

        # Loading.
        before = here.directory
        ours["path"] = here.load(made[0]) == here.directory
        same["new directory"] = [before == here.directory, os.path.exists(before), os.listdir(here.directory)]
        before = here.directory
        here.load(made[0]["key"])
        same["and again"] = [before == here.directory, os.path.exists(before), os.listdir(here.directory)]
        before = here.directory
        ours["given path"] = here.load(entry, path="loaded")
        same["into a path"] = [before == here.directory, os.listdir("loaded")]
        ours["path-like"] = Checkpoint().load(made[3], Path("path-like"))
        same["path-like"] = os.listdir("path-like")
        with Checkpoint() as into:
            ours["in with"] = into.load(entry) == into.directory
            same["with"] = os.listdir(into.directory)
            inside = into.directory
        same["after with"] = [os.path.exists(inside), into.directory]
        lone = Checkpoint(init_dir=True)
        same["init_dir"] = [os.listdir(lone.directory), Checkpoint().directory]
        here.refresh_directory()
        same["refreshed"] = [os.listdir(here.directory), os.path.exists(before)]
        subprocess.run([sys.executable, "-c", CALLBACK], check=True)
        (saved,) = here.list(name="callback")
        same["callback"] = saved["metadata"]

        # Relative directories, and a step that goes elsewhere.
        os.makedirs("elsewhere/roots", exist_ok=True)
        os.chdir("elsewhere")
        lone = Checkpoint("roots", True)
        same["relative root"] = os.listdir("roots") == [os.path.basename(lone.directory)]
        if os.environ.get("OURS"):
            os.chdir("/")  # There the incumbent has lost its relative directories.
            write(os.path.join(lone.directory, "state"))
            write(os.path.join(here.directory, "state"))
            ours["after chdir"] = [lone.save(name="lone")["size"], here.save()["size"]]
            ours["pickles"] = json.loads(json.dumps(here.info)) == here.info == here.info.to_dict()
        here.cleanup()
        here.cleanup()
        same["cleaned up"] = os.path.exists(here.directory)
        self.kept = made[3]
        self.next(self.end)

    @step
    def end(self):
        self.same["in the next step"] = facts(self.info)
        self.same["kept"] = [self.kept["name"], self.kept["metadata"], self.info.to_dict()["metadata"]]
        with Checkpoint() as into:
            into.load(self.info)
            self.same["loads in the next step"] = os.listdir(into.directory)


if __name__ == "__main__":
    SurfaceFlow()
