"""Accelerate trains in a step, or on several ranks under torchrun; killed, it goes on where it was.

python examples/accelerate_flow.py run --ranks 2     (needs accelerate)
"""

import os
import subprocess
import sys

from metaflow import FlowSpec, Parameter, checkpoint, retry, step


class AccelerateFlow(FlowSpec):
    ranks = Parameter("ranks", default=1)

    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        if self.ranks == 1:
            from accelerate_train import train

            train()
        else:
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "accelerate_train.py")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
            subprocess.run([*command, "--nproc-per-node", str(self.ranks), script], check=True)
        self.next(self.end)

    @step
    def end(self):
        print("Trained")


if __name__ == "__main__":
    AccelerateFlow()
