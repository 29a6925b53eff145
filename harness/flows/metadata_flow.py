"""Saves with metadata as training loops have it at hand, from the task, a subprocess and a shell."""

import datetime
import math
import pathlib
import subprocess
import sys

import numpy as np
from metaflow import FlowSpec, checkpoint, current, step

SUBPROCESS = """
from metaflow import Checkpoint
for _ in range(2):
    Checkpoint().save("state", metadata={"rank": {1}, "model": object()}, name="subprocess")
"""


class MetadataFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        pathlib.Path("state").write_text("state")
        loop = {}
        loop["itself"] = loop
        for epoch in range(2):
            self.saved = current.checkpoint.save(
                "state",
                metadata={
                    "loss": np.float32(0.5),
                    "epoch": np.int64(epoch),
                    "best": np.bool_(True),
                    "rates": np.array([0.5, 0.25]),
                    "when": datetime.datetime(2026, 11, 28),
                    "path": pathlib.Path("/data"),
                    "labels": {"b", "a"},
                    3: "three",
                    "nan": math.nan,
                    "model": object(),
                    "blob": "x" * 50_000_000,
                    "loop": loop,
                },
            )
        done = subprocess.run([sys.executable, "-c", SUBPROCESS], check=True, capture_output=True, text=True)
        self.stderr = {"subprocess": done.stderr}
        for name, text in {"nan": '{"loss": NaN, "half": "\\ud800"}', "text": "loss=nan", "list": "[1]"}.items():
            done = subprocess.run(
                ["async-ckpt", "save", "state", "--name", name, "--metadata", text, "--json"],
                check=True,
                capture_output=True,
                text=True,
            )
            self.stderr[name] = done.stderr
        current.checkpoint.flush(60)
        self.listed = subprocess.check_output(["async-ckpt", "list", "--json"], text=True)
        self.in_python = {item["name"]: item["metadata"] for item in current.checkpoint.list()[::-1]}
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    MetadataFlow()
