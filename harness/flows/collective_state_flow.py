"""Two ranks that torchrun starts: each saves its own state, all of them one checkpoint."""

import os
import subprocess
import sys

from metaflow import Checkpoint, FlowSpec, checkpoint, retry, step

STEPS, EVERY = 8, 2


class CollectiveStateFlow(FlowSpec):
    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
        subprocess.run([*launcher, "--nproc-per-node=2", __file__], check=True)
        self.next(self.end)

    @step
    def end(self):
        pass


def train():
    import torch
    import torch.distributed as dist
    from torch import nn

    rank, saving = dist.get_rank(), Checkpoint()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    torch.manual_seed(1 + rank)  # Each rank has data of its own, and drops other neurons.
    first, state = 1, saving.load_state(into={"model": network.state_dict()})
    if state is not None:
        assert state["rank"] == rank
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        first = state["step"] + 1
    print(f"Rank {rank} begins with step {first}", flush=True)
    model = nn.parallel.DistributedDataParallel(network)
    for number in range(first, STEPS + 1):
        inputs = torch.randn(16, 8)
        loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True).sin())
        optimizer.zero_grad()
        loss.backward()  # Here the ranks agree on their gradients.
        optimizer.step()
        if number % EVERY == 0:
            state = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"random": torch.get_rng_state(), "step": number, "rank": rank}
            saving.save_state(state, staging="async", collective=True, metadata={"step": number})


if __name__ != "__main__":
    pass
elif "RANK" in os.environ:
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    try:
        train()
        torch.distributed.barrier()  # No rank takes the connection away while another one still needs it.
    finally:
        torch.distributed.destroy_process_group()
else:
    CollectiveStateFlow()
