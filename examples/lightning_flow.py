"""Lightning trains in a step; killed, it goes on where it was.

python examples/lightning_flow.py run     (needs pytorch_lightning or lightning)
"""

import os

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step


def train(folder="checkpoints"):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    from async_ckpt.integrations.lightning import CheckpointCallback

    pl.seed_everything(int(os.environ.get("RANK", 0)))
    files = ModelCheckpoint(dirpath=folder, monitor="loss", save_top_k=2, save_last=True)
    # This callback saves what the other one writes.
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", 1)), logger=False,
        callbacks=[files, CheckpointCallback()],
    )  # fmt: skip
    # A retry goes on from the newest of these files; in a first attempt this is None.
    trainer.fit(make_model(pl), make_loader(), ckpt_path=Checkpoint().resume_path())
    return files.best_model_path


def make_model(pl):
    import torch
    from torch import nn

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))

        def training_step(self, batch, batch_idx):
            loss = nn.functional.mse_loss(self.layers(batch[0]), batch[1])
            self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)]

    return Model()


def make_loader():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True).sin()), batch_size=8, shuffle=True)


class LightningFlow(FlowSpec):
    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        # The same in all attempts, so that ModelCheckpoint knows its files again.
        self.best = train(os.path.join("checkpoints", current.pathspec))
        self.next(self.end)

    @step
    def end(self):
        print(f"The best one: {self.best}")


if __name__ == "__main__":
    LightningFlow()
