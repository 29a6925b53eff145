"""A rank of the public DDP example, as torchrun starts it: rank 0 saves for all, and all load what the step found."""

import argparse
import os

import torch
import torch.distributed as dist
from dying import digest, wait_to_be_killed
from metaflow import Checkpoint
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def make_data():
    inputs = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs[:, :4].argmax(1))


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def train(epochs, checkpoint_load_path, model_save_path):
    rank, processes = dist.get_rank(), [None] * dist.get_world_size()
    # Rank 0 and its parent, which is torchrun, and the task that waits for it.
    dist.all_gather_object(processes, os.getpid())
    processes += [os.getppid(), int(os.environ["TASK_PROCESS"])]
    torch.set_num_threads(1)
    data = make_data()
    sampler = DistributedSampler(data, seed=3)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start_epoch, losses = 0, {}
    if checkpoint_load_path is not None:
        loaded = torch.load(os.path.join(checkpoint_load_path, "epoch.pth"))
        model.load_state_dict(loaded["model_state_dict"])
        start_epoch = loaded["epoch"] + 1
        optimizer.load_state_dict(loaded["optimizer_state_dict"])
        print("Loaded checkpoint from", checkpoint_load_path, "Starting from epoch", start_epoch)

    checkpoint = Checkpoint(init_dir=True)
    best_path = os.path.join(checkpoint.directory, "best_model.pth")
    epoch_path = os.path.join(checkpoint.directory, "epoch.pth")
    best_val_loss = float("inf")
    for epoch in range(start_epoch, epochs):
        sampler.set_epoch(epoch)
        for inputs, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        with torch.no_grad():
            val_loss = cross_entropy(model.module(data.tensors[0]), data.tensors[1]).item()
        losses[epoch] = val_loss
        if rank == 0:
            metadata = {"epoch": epoch, "val_loss": val_loss, "model_name": "tiny", "learning_rate": 1e-2}
            state = {
                "epoch": epoch,
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "loss": val_loss,
            }
            torch.save(state, epoch_path)
            checkpoint.save(epoch_path, metadata=metadata, name="epoch_checkpoint", latest=True)
            if val_loss < best_val_loss:
                best_val_loss = val_loss
                torch.save(state, best_path)
                checkpoint.save(best_path, metadata=metadata, name="best_model", latest=False)
            wait_to_be_killed(epoch, *processes)
    if rank == 0:
        weights = digest(value.numpy() for value in model.module.state_dict().values())
        torch.save({"losses": losses, "weights": weights, "model": model.module.state_dict()}, model_save_path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--checkpoint-load-path")
    parser.add_argument("--model-save-path", required=True)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        train(options.epochs, options.checkpoint_load_path, options.model_save_path)
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
