"""A rank of a data-parallel training, as torchrun starts it: all ranks save one checkpoint together, each its part.

``ddp_flow.py`` runs it in a step. Rank 0's part is what all ranks have alike: the model and its optimizer. Every rank's
part is what it alone has: where it stands in its data, and its random numbers.
"""

import argparse
import hashlib
import json
import os
import signal

import torch
import torch.distributed as dist
from metaflow import Checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

INPUTS, HIDDEN, SAMPLES, BATCH = 32, 128, 512, 16


class Sampler:
    """Batches of a rank's own samples, in an order of its own for each pass over them."""

    def __init__(self, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.order, self.position = torch.randperm(SAMPLES, generator=self.random), 0

    def next(self):
        if self.position + BATCH > SAMPLES:
            self.order, self.position = torch.randperm(SAMPLES, generator=self.random), 0
        self.position += BATCH
        return self.order[self.position - BATCH : self.position]

    def state(self):
        return {"random": self.random.get_state(), "order": self.order, "position": self.position}

    def resume(self, state):
        self.random.set_state(state["random"])
        self.order, self.position = state["order"], state["position"]


def make_data(seed, rank):
    """This rank's samples: what a function that all ranks share says of inputs that no other rank has."""
    truth = torch.randn(INPUTS, generator=torch.Generator().manual_seed(seed))
    inputs = torch.randn(SAMPLES, INPUTS, generator=torch.Generator().manual_seed(seed + 1 + rank))
    return inputs, torch.sin(inputs @ truth).unsqueeze(1)


def make_model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 1),
    )


def save(folder, rank, step, model, optimizer, sampler, losses):
    """Save this rank's part, written in place over the one before; returns at once."""
    if rank == 0:
        shared = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(shared, os.path.join(folder, "model.pt"))
    own = {"sampler": sampler.state(), "random": torch.get_rng_state(), "losses": losses}
    torch.save(own, os.path.join(folder, f"rank-{rank}.pt"))
    # Rank and number of ranks are torchrun's RANK and WORLD_SIZE.
    Checkpoint().save(folder, collective=True, metadata={"step": step})


def resume(folder, rank, model, optimizer, sampler):
    """Take up what all ranks had saved together. Returns this rank's losses until then."""
    shared = torch.load(os.path.join(folder, "model.pt"), weights_only=True)
    model.load_state_dict(shared["model"])
    optimizer.load_state_dict(shared["optimizer"])
    own = torch.load(os.path.join(folder, f"rank-{rank}.pt"), weights_only=True)
    sampler.resume(own["sampler"])
    torch.set_rng_state(own["random"])
    return own["losses"]


def train(options, rank):
    # Sums in another order are other sums.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    inputs, targets = make_data(options.seed, rank)
    network, sampler = make_model(options.seed), Sampler(options.seed + 1000 + rank)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    torch.manual_seed(options.seed + 2000 + rank)  # Each rank drops other neurons.
    losses = resume(options.resume, rank, network, optimizer, sampler) if options.resume else []
    model = DistributedDataParallel(network)
    folder = os.path.join(options.directory, f"part-{rank}")
    os.makedirs(folder, exist_ok=True)

    def die(step, moment):
        if options.kill == f"{rank}@{step}:{moment}":
            os.kill(os.getpid(), signal.SIGKILL)

    for step in range(len(losses) + 1, options.steps + 1):
        batch = sampler.next()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
        die(step, "forward")
        loss.backward()  # Here the ranks agree on their gradients.
        optimizer.step()
        losses.append(loss.item())
        if options.losses:
            with open(os.path.join(options.losses, f"rank-{rank}.jsonl"), "a") as file:
                file.write(json.dumps({"attempt": options.attempt, "step": step, "loss": losses[-1]}) + "\n")
        if step % options.every == 0 or step == options.steps:
            die(step, "before-save")
            save(folder, rank, step, network, optimizer, sampler, losses)
            die(step, "after-save")
    weights = json.dumps([value.tolist() for value in network.state_dict().values()])
    with open(os.path.join(options.directory, f"result-{rank}.json"), "w") as file:
        json.dump({"losses": losses, "weights": hashlib.sha256(weights.encode()).hexdigest()}, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", required=True, help="where the ranks keep what they save")
    parser.add_argument("--resume", help="a directory with a checkpoint of all ranks")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps from one save to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", help="directory where each rank adds its loss after every step")
    parser.add_argument("--attempt", type=int, default=0, help="to be written beside the loss")
    parser.add_argument("--kill", help="RANK@STEP:MOMENT of a SIGKILL; see ddp_flow.py")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        train(options, dist.get_rank())
        dist.barrier()  # No rank takes the connection away while another one still needs it.
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
