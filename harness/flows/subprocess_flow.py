"""A step whose subprocesses save, list and load; how the agent fares meanwhile is up to the test."""

import json
import os
import signal
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, current, step

OPTIONS = json.loads(os.environ.get("CKPT_OPTIONS", "{}"))
#: Processes besides the task, and saves of each.
PROCESSES, SAVES = 4, int(os.environ.get("SAVES", "5"))

SAVER = """
import json, os, sys
from metaflow import Checkpoint
who, saves = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
references = []
for count in range(saves):
    with Checkpoint() as checkpoint:
        with open(os.path.join(checkpoint.directory, "content"), "w") as file:
            file.write(f"{who} {count}")
        references.append(checkpoint.save(metadata={"who": who, "count": count}))
print(json.dumps(references))
"""

READER = """
import json, os, sys
from metaflow import Checkpoint
mine = Checkpoint().list()
with Checkpoint() as into:
    into.load(mine[-1])
    by_entry = open(os.path.join(into.directory, "content")).read()
kept = Checkpoint(init_dir=True)
kept.load(mine[-1]["key"])
by_key = open(os.path.join(kept.directory, "content")).read()
Checkpoint().load(dict(mine[-1]), "by-dict")
print(json.dumps({"list": mine, "entry": by_entry, "key": by_key, "dict": open("by-dict/content").read()}))
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def save_in_task(count):
    with open(os.path.join(current.checkpoint.directory, "content"), "w") as file:
        file.write(f"task {count}")
    return current.checkpoint.save(metadata={"who": "task", "count": count})


class SubprocessFlow(FlowSpec):
    @checkpoint(**OPTIONS)
    @step
    def start(self):
        self.saved = [save_in_task(0)]
        if os.environ.get("KILL_AGENT"):
            os.kill(current.checkpoint.status()["pid"], signal.SIGKILL)

        savers = [start(SAVER, f"process {n}", str(SAVES)) for n in range(PROCESSES)]
        for saver in savers:
            assert saver.stdout.readline() == "ready\n"
        for saver in savers:  # All are ready: now at once.
            saver.stdin.write("\n")
            saver.stdin.flush()
        self.saved += [save_in_task(count) for count in range(1, SAVES)]
        for saver in savers:
            output, _ = saver.communicate()
            assert saver.returncode == 0
            self.saved += json.loads(output)

        reader = start(READER)
        output, _ = reader.communicate()
        assert reader.returncode == 0
        self.read = json.loads(output)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    SubprocessFlow()
