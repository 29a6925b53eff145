"""What the callbacks of metaflow-checkpoint's examples do, without the frameworks; also a trainer of its own."""

import os
import shutil

from metaflow import Checkpoint, current
from seen import told, write


class LightningCallback:
    """One file a checkpoint, positional arguments, the best is not the latest."""

    def __init__(self, name, set_latest=True):
        self.checkpointer = Checkpoint()
        self._name, self._set_latest = name, set_latest
        self.latest_checkpoint = None

    def save(self, filepath, metadata):
        metadata["file_names"] = [os.path.basename(filepath)]
        self.latest_checkpoint = self.checkpointer.save(filepath, metadata, name=self._name, latest=self._set_latest)


class KerasCallback:
    """A relative path in the working directory."""

    def __init__(self):
        self.checkpointer = Checkpoint()

    def save(self, latest_file, epoch):
        return self.checkpointer.save(latest_file, name="keras", metadata={"epoch": epoch, "latest_file": latest_file})


class TrainerCallback:
    """In the step or in a process of its own; ``save_total_limit`` removes the directory before last."""

    def __init__(self):
        self.checkpointer = current.checkpoint if current.is_running_flow else Checkpoint(init_dir=True)
        self._limit = []

    def on_save(self, output, step):
        folder = write(os.path.join(output, f"checkpoint-{step}"), {"model.bin": f"step {step}", "trainer_state": "{}"})
        reference = self.checkpointer.save(folder, name="hf_trainer", metadata={"checkpoint_dir": f"checkpoint-{step}"})
        self._limit.append(folder)
        if len(self._limit) > 1:
            shutil.rmtree(self._limit.pop(0))
        return reference


def train_ddp(epochs):
    """As the example that torchrun starts: epochs that are not the latest, and the best that is."""
    checkpoint = Checkpoint(init_dir=True)
    for epoch in range(epochs):
        write(checkpoint.directory, {"epoch.pth": f"epoch {epoch}"})
        checkpoint.save(os.path.join(checkpoint.directory, "epoch.pth"), name="epoch_checkpoint", latest=False)
        write(checkpoint.directory, {"best_model.pth": f"best of {epoch}"})
        best = checkpoint.save(metadata={"epoch": epoch}, name="best_model", latest=True)
    return told(best, "version_id", "attempt")


if __name__ == "__main__":
    from seen import saw

    callback = TrainerCallback()
    saw("in a process of its own", [type(callback.checkpointer).__name__, train_ddp(2)])
