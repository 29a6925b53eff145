"""Trains on ranks that torchrun starts: what they run is the function ``train`` of the example named ``EXAMPLE``."""

import os
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, retry, step

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torchrun_train.py")


class TorchrunFlow(FlowSpec):
    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*launcher, SCRIPT], check=True)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TorchrunFlow()
