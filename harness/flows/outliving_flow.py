"""A step that does not wait for its subprocess; the test tells that one when to go on."""

import os
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, step

#: Saves once while the step runs, and then asks for everything, when somebody writes into the pipe.
ORPHAN = """
import json, os, sys
from metaflow import Checkpoint
def why(call):
    try:
        return f"no error: {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
kept = Checkpoint()
open("content", "w").write("theirs")
kept.save("content", metadata={"who": "orphan"})
print("saved", flush=True)
sys.stdout.close()
open(os.environ["PIPE"]).read()
said = {
    "save": why(lambda: kept.save("content")), "list": why(kept.list), "flush": why(kept.flush),
    "status": why(kept.status), "another": why(lambda: Checkpoint().save("content")),
}
with open(os.environ["PIPE"] + ".new", "w") as file:
    json.dump(said, file)
os.rename(os.environ["PIPE"] + ".new", os.environ["PIPE"] + ".said")
"""


class OutlivingFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        orphan = subprocess.Popen(
            [sys.executable, "-c", ORPHAN], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
            stderr=subprocess.DEVNULL, cwd=os.path.dirname(os.environ["PIPE"]),
        )  # fmt: skip
        assert orphan.stdout.readline() == b"saved\n"
        self.orphan = orphan.pid
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OutlivingFlow()
