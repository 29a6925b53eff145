"""torchrun trains a model on two ranks, one of them is killed, and the retry goes on as if nothing had happened.

python examples/ddp_flow.py run     (needs torch)
"""

import json
import os
import subprocess
import sys

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ddp_train.py")


class DdpFlow(FlowSpec):
    ranks = Parameter("ranks", default=2)
    steps = Parameter("steps", default=20)
    every = Parameter("every", default=2, help="Steps from one save to the next")
    seed = Parameter("seed", default=0)
    kill = Parameter(
        "kill",
        default="1@12:before-save",
        help="RANK@STEP:MOMENT of a SIGKILL, or 'never'; with commas, one for each attempt. Moments: forward (the "
        "others wait for its gradients), before-save (the others may have saved), after-save",
    )
    log = Parameter("log", default="", help="Directory where each rank adds its loss after every step")

    @retry(times=4, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        directory, kills = current.checkpoint.directory, self.kill.split(",")
        self.resumed_at = current.checkpoint.info.metadata["step"] if current.checkpoint.is_loaded else 0
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost",
            "--nproc-per-node", str(self.ranks), SCRIPT, "--directory", directory, "--steps", str(self.steps),
            "--every", str(self.every), "--seed", str(self.seed), "--attempt", str(current.retry_count),
        ]  # fmt: skip
        print(f"Attempt {current.retry_count} goes on after step {self.resumed_at}")
        if current.checkpoint.is_loaded:
            # The parts of all ranks are there; every rank reads rank 0's and its own.
            command += ["--resume", directory]
        if current.retry_count < len(kills):
            command += ["--kill", kills[current.retry_count]]
        if self.log:
            command += ["--losses", self.log]
        # The step outlives its ranks, and fails with them: the retry begins with what all of them had saved.
        subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
        self.losses, self.weights = [], []
        for rank in range(self.ranks):
            with open(os.path.join(directory, f"result-{rank}.json")) as file:
                result = json.load(file)
            self.losses.append(result["losses"])
            self.weights.append(result["weights"])
        self.next(self.end)

    @step
    def end(self):
        print(f"Resumed after step {self.resumed_at}; losses of rank 0 at the end: {self.losses[0][-3:]}")


if __name__ == "__main__":
    DdpFlow()
