"""What the flow with plain torch trains, and how it saves."""

import os

import torch
from dying import digest, wait_to_be_killed
from metaflow import current
from torch import nn
from torch.nn import functional as F


def make_data(seed, count):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 16, generator=generator)
    return inputs, (inputs[:, :4].argmax(1) + (inputs[:, 4] > 0)).long()


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 5))


def validate(network, inputs, labels):
    network.eval()
    with torch.no_grad():
        output = network(inputs)
    return F.cross_entropy(output, labels).item(), 100.0 * (output.argmax(1) == labels).float().mean().item()


def train(checkpoint_path, num_epochs, model_save_dir):
    """The losses of this attempt by epoch, the best ones, the digest of the weights and the last checkpoint."""
    checkpoint = current.checkpoint
    network = make_model()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    start_epoch, best_loss, best_acc = 0, float("inf"), 0.0
    if checkpoint_path:
        loaded = torch.load(checkpoint_path)
        network.load_state_dict(loaded["model_state_dict"])
        optimizer.load_state_dict(loaded["optimizer_state_dict"])
        start_epoch = loaded["epoch"] + 1
        print("Loading model from checkpoint with epoch", loaded["epoch"], "and loss", loaded["loss"])

    best_path = os.path.join(model_save_dir, "best", "checkpoint.pth")
    os.makedirs(os.path.dirname(best_path), exist_ok=True)
    inputs, labels = make_data(1, 256)
    losses, latest_checkpoint = {}, None
    for epoch in range(start_epoch, num_epochs):
        network.train()
        torch.manual_seed(epoch)
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        val_loss, val_acc = validate(network, *make_data(2, 64))
        losses[epoch] = val_loss
        state = {
            "model_state_dict": network.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "epoch": epoch,
            "loss": loss,
            "val_acc": val_acc,
        }
        if val_loss < best_loss:
            best_loss, best_acc = val_loss, val_acc
            torch.save(state, best_path)
            checkpoint.save(best_path, name="best")
        epoch_dir = os.path.join(model_save_dir, f"epoch_{epoch}")
        os.makedirs(epoch_dir, exist_ok=True)
        torch.save(state, os.path.join(epoch_dir, "checkpoint.pth"))
        latest_checkpoint = checkpoint.save(epoch_dir)
        wait_to_be_killed(epoch)
    weights = digest(value.numpy() for value in network.state_dict().values())
    return losses, (best_loss, best_acc), weights, latest_checkpoint


def test(checkpoint_path):
    network = make_model()
    network.load_state_dict(torch.load(checkpoint_path)["model_state_dict"])
    return validate(network, *make_data(2, 64))[0]
