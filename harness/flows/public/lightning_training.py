"""What the flow with Lightning trains, and the callback that saves."""

import os
import time

import pytorch_lightning as pl
import torch
from dying import digest, wait_to_be_killed
from metaflow import Checkpoint
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class MetaflowCheckpoint(ModelCheckpoint):
    def __init__(self, *args, name, set_latest=True, **kwargs):
        super().__init__(*args, **kwargs)
        self._chckpt_name = name
        self.checkpointer = Checkpoint()
        self.latest_checkpoint = None
        self.set_latest = set_latest

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        metadata = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pbar_dict": trainer.progress_bar_metrics,
            "callback_info": {"monitor": self.monitor, "mode": self.mode},
            "saved_from": "PTLTrainer",
            "file_names": [os.path.basename(filepath)],
        }
        self.latest_checkpoint = self.checkpointer.save(
            filepath,
            metadata,
            name=self._chckpt_name,
            latest=self.set_latest,
        )


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.losses = {}

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        output = self.model(inputs)
        loss = F.cross_entropy(output, labels)
        self.log("val_acc", (output.argmax(1) == labels).float().mean(), prog_bar=True)
        self.log("val_loss", loss, prog_bar=True)
        if not self.trainer.sanity_checking:
            self.losses[self.current_epoch] = loss.item()

    test_step = validation_step

    def on_train_epoch_start(self):
        # What was saved of the epoch before is all saved by now.
        wait_to_be_killed(self.current_epoch - 1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def make_loader(seed, count):
    inputs = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=64)


def make_trainer(**options):
    return pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=True, **options)


def train(checkpoint_path, callbacks, num_epochs):
    """The losses of this attempt by epoch, and the digest of the weights."""
    classifier = Classifier()
    trainer = make_trainer(max_epochs=num_epochs, callbacks=callbacks)
    trainer.fit(classifier, make_loader(1, 256), make_loader(2, 64), ckpt_path=checkpoint_path)
    return classifier.losses, digest(value.numpy() for value in classifier.state_dict().values())


def test(checkpoint_path):
    (result,) = make_trainer().test(Classifier.load_from_checkpoint(checkpoint_path), make_loader(2, 64))
    return result["val_loss"]


def fill(directory):
    """Outputs of two trainings, each with a link to its last file; that of the first is the newer one."""
    for epochs in (3, 2):
        callback = ModelCheckpoint(
            dirpath=directory, filename="{epoch}-{step}", save_top_k=2, save_last="link", monitor="val_loss"
        )
        make_trainer(max_epochs=epochs, callbacks=[callback]).fit(Classifier(), make_loader(1, 256), make_loader(2, 64))
    now = time.time()
    for age, name in ((60, "last-v1.ckpt"), (0, "last.ckpt")):
        os.utime(os.path.join(directory, name), (now - age, now - age))


def chosen(directory):
    """With what epoch a training goes on that is told to go on with the last one, and whether that is a link."""
    callback = ModelCheckpoint(dirpath=directory, save_last="link")
    trainer = make_trainer(max_epochs=3, callbacks=[callback])
    trainer.fit(Classifier(), make_loader(1, 256), make_loader(2, 64), ckpt_path="last")
    path = trainer.ckpt_path
    return [os.path.basename(path), trainer.current_epoch, os.path.islink(path)]
