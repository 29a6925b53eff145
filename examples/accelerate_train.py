"""A training with Accelerate that saves every few batches, and goes on where it was. accelerate_flow.py starts it."""

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from async_ckpt.integrations.accelerate import load_state, save_state

EPOCHS, EVERY = 3, 3


def make_loader():
    inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True).sin())
    # A generator of its own: without one, each pass over the data takes numbers that dropout would have had.
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator())


def train():
    # A seedable sampler: the order of an epoch follows from its number, also when it is resumed half-way.
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
    accelerator = Accelerator(cpu=True, dataloader_config=order)
    set_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, make_loader())
    set_seed(0, device_specific=True)  # Each process drops other neurons.

    begun = load_state(accelerator) or {"epoch": 0, "batches": 0}
    print(f"Begins with epoch {begun['epoch']}, after {begun['batches']} batches of it", flush=True)
    for epoch in range(begun["epoch"], EPOCHS):
        loader.set_epoch(epoch)
        done = begun["batches"] if epoch == begun["epoch"] else 0
        for number, (inputs, targets) in enumerate(accelerator.skip_first_batches(loader, done), start=done + 1):
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if number % EVERY == 0:
                save_state(accelerator, metadata={"epoch": epoch, "batches": number})
    accelerator.end_training()


if __name__ == "__main__":
    train()
