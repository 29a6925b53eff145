"""A rank of a sharded training (FSDP), as torchrun starts it; ``dcp_flow.py`` runs it in a step.

PyTorch's distributed checkpoints (DCP) gather what each rank has: its shards of the model and of Adam's state, how far
the training is, and each rank's random numbers.
"""

import argparse

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from metaflow import Checkpoint
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from async_ckpt.integrations.dcp import StoreReader, StoreWriter

WIDTH, BATCH = 64, 8


class Training:
    """Has ``state_dict`` and ``load_state_dict``, so DCP saves and loads it as it is."""

    def __init__(self):
        self.rank, self.step = dist.get_rank(), 0
        torch.manual_seed(0)  # All ranks begin with the same model,
        layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1)) for _ in range(3)]
        self.model = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in self.model:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        torch.manual_seed(1 + self.rank)  # and each drops other neurons.

    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        own = {f"random-{self.rank}": torch.get_rng_state()}
        return {"model": model, "optimizer": optimizer, "step": self.step, **own}

    def load_state_dict(self, state):
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = state["step"]
        torch.set_rng_state(state[f"random-{self.rank}"])

    def train_one_step(self):
        # Which samples are next follows from the step and the rank: that is the place in the data.
        numbers = torch.Generator().manual_seed(self.step * 1000 + self.rank)
        inputs = torch.randn(BATCH, WIDTH, generator=numbers)
        loss = nn.functional.mse_loss(self.model(inputs), inputs.sum(1, keepdim=True).sin())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()


def main(options):
    training = Training()
    if Checkpoint().resume_path():
        # Where more ranks resume than had saved, the others keep the random numbers they have.
        planner = DefaultLoadPlanner(allow_partial_load=True)
        dcp.load({"training": training}, storage_reader=StoreReader(), planner=planner)
    # A save in the background talks to the other ranks while the training does: it needs a group of its own.
    saving, group, loss = None, dist.new_group(backend="gloo"), None
    while training.step < options.steps:
        loss = training.train_one_step()
        if training.step % options.every and training.step < options.steps:
            continue
        state, writer = {"training": training}, StoreWriter(metadata={"step": training.step})
        if options.how == "save":
            dcp.save(state, storage_writer=writer, process_group=group)  # Returns when it is on the local disk.
        else:
            if saving is not None:
                saving.result()  # One at a time. This also raises what went wrong.
            saving = dcp.async_save(
                state,
                storage_writer=writer,
                process_group=group,
                async_checkpointer_type=AsyncCheckpointerType(options.how),
            )
    if saving is not None:
        saving.result()
    if training.rank == 0:
        print(f"Step {training.step}: the loss is {loss}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=2, help="steps from one save to the next")
    parser.add_argument("--how", default="thread", choices=["save", "thread", "process"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        main(parser.parse_args())
        dist.barrier()  # No rank takes the connection away while another one still needs it.
    finally:
        dist.destroy_process_group()
