"""What ``torchrun_flow.py`` does, on two nodes of a gang: each has a torchrun with one rank, and a disk of its own."""

import os
import socket
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, current, parallel, retry, step

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torchrun_train.py")
NODES = 2


class TorchrunGangFlow(FlowSpec):
    @step
    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.next(self.train, num_parallel=NODES)

    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @parallel
    @step
    def train(self):
        node = str(current.parallel.node_index)
        disk = f"disk-of-node-{node}-in-attempt-{current.retry_count}"
        os.mkdir(disk)
        meeting = ["--master-addr", "127.0.0.1", "--master-port", str(self.port + current.retry_count)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NODES), "--node-rank", node]
        subprocess.run([*launcher, *meeting, SCRIPT], check=True, cwd=disk)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TorchrunGangFlow()
