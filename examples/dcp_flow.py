"""torchrun trains a model that is sharded over two ranks (FSDP), and a retry goes on from the last checkpoint of both.

python examples/dcp_flow.py run     (needs torch)
"""

import os
import subprocess
import sys

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dcp_train.py")


class DcpFlow(FlowSpec):
    ranks = Parameter("ranks", default="2", help="How many; with commas, of each attempt")
    steps = Parameter("steps", default=12)
    every = Parameter("every", default=2, help="Steps from one save to the next")
    how = Parameter("how", default="thread", help="save, or async_save in a thread or a process")

    @retry(times=4, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        ranks = self.ranks.split(",")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost",
            "--nproc-per-node", ranks[min(current.retry_count, len(ranks) - 1)],
            SCRIPT, "--steps", str(self.steps), "--every", str(self.every), "--how", self.how,
        ]  # fmt: skip
        self.resumed_at = current.checkpoint.info.metadata["step"] if current.checkpoint.is_loaded else 0
        subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
        self.next(self.end)

    @step
    def end(self):
        print(f"Resumed after step {self.resumed_at}")


if __name__ == "__main__":
    DcpFlow()
