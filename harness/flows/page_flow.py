"""A step that does what a code block of a page says. The test writes the block down, and says what it is.

``BLOCK``: the file. ``BLOCK_RUNS``: "in the step" for Python there; "in subprocesses" for Python, or a shell's lines
(``.sh``), in processes that the step starts, ``RANKS`` of them side by side.
"""

import os
import runpy
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, current, step

BLOCK = os.environ["BLOCK"]
COMMAND = ["bash", "-euo", "pipefail", BLOCK] if BLOCK.endswith(".sh") else [sys.executable, BLOCK]
RANKS = int(os.environ.get("RANKS", "1"))


class PageFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        if os.environ["BLOCK_RUNS"] == "in the step":
            runpy.run_path(BLOCK, {"self": self, "current": current})
        else:
            ranks = {"WORLD_SIZE": str(RANKS)} if RANKS > 1 else {}
            started = [subprocess.Popen(COMMAND, env={**os.environ, "RANK": str(n), **ranks}) for n in range(RANKS)]
            statuses = [process.wait() for process in started]
            assert not any(statuses), statuses
        current.checkpoint.flush()
        self.saved = current.checkpoint.list()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    PageFlow()
