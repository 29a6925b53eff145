"""Lightning removes files at once, names them oddly, writes directories, breaks off, and is killed as it writes.

With ``--nodes 2``: two processes, each a node to Lightning, that write into a directory which both see.
"""

import json
import os
import signal
import socket
import subprocess
import sys

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step

#: Of each Trainer here: so many steps, a checkpoint after each.
STEPS = 4


class LightningAttackFlow(FlowSpec):
    nodes = Parameter("nodes", default=1)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        import pytorch_lightning

        pytorch_lightning.__version__ = "9.0"  # Later than any that was tried.
        if self.nodes > 1:
            self.found = on_nodes(self.nodes)
        else:
            if current.retry_count == 0:
                attack()
            self.resumed, self.found = resume()
        self.next(self.end)

    @step
    def end(self):
        pass


def attack():
    """All but the last attack; what was seen is kept in a file of a checkpoint, as this attempt is killed."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
    from pytorch_lightning.strategies import SingleDeviceStrategy

    from async_ckpt.errors import UsageError
    from async_ckpt.integrations.lightning import CheckpointCallback, SavingCheckpointIO

    class WritesDirectories(SingleDeviceStrategy):
        def save_checkpoint(self, checkpoint, filepath, storage_options=None):
            os.makedirs(os.path.join(filepath, "a"))
            torch.save(checkpoint, os.path.join(filepath, "a", "part.pt"))

        def remove_checkpoint(self, filepath):
            import shutil

            shutil.rmtree(filepath)

    def fit(name, *, callbacks=(), trainer=None, files=None, **options):
        files = files or [
            ModelCheckpoint(
                dirpath=f"{name}/ü [1]", filename="a b*{epoch}-{step}", monitor="a/loss", save_top_k=1,
                every_n_train_steps=1, save_last=True,
            ),
            ModelCheckpoint(dirpath=f"{name}/weights", every_n_train_steps=3, save_weights_only=True, save_last="link"),
        ]  # fmt: skip
        trainer = trainer or make_trainer(pl, callbacks=[*files, *callbacks], **options)
        trainer.fit(make_model(pl))
        return trainer

    def refusal(**options):
        try:
            fit("refused", **options)
        except UsageError as error:
            return str(error)

    seen = {
        "callback and io": refusal(callbacks=[CheckpointCallback()], plugins=[SavingCheckpointIO()]),
        "callback and io within": refusal(
            callbacks=[CheckpointCallback()], plugins=[AsyncCheckpointIO(SavingCheckpointIO())]
        ),
        "callback and later": refusal(callbacks=[CheckpointCallback()], plugins=[AsyncCheckpointIO()]),
        "not local": refusal(
            callbacks=[CheckpointCallback()], files=[ModelCheckpoint(dirpath="memory://there", every_n_train_steps=1)]
        ),
    }
    try:
        SavingCheckpointIO(AsyncCheckpointIO())
    except UsageError as error:
        seen["io around later"] = str(error)

    broken_off = make_trainer(pl, callbacks=[CheckpointCallback(name="again"), BreaksOff(pl)])
    try:
        broken_off.fit(make_model(pl))
    except ZeroDivisionError:
        fit("again", trainer=broken_off)
    broken_off.save_checkpoint("by hand.ckpt")  # When the training is over.

    fit("callback", callbacks=[CheckpointCallback(name="callback")])
    fit("io", plugins=[SavingCheckpointIO(TorchCheckpointIO(), name="io")])
    # Lightning links to what is not written yet, where it writes later: so only the first callback.
    one = ModelCheckpoint(dirpath="thread", monitor="a/loss", save_top_k=1, every_n_train_steps=1, save_last=True)
    fit("thread", files=[one], plugins=[AsyncCheckpointIO(SavingCheckpointIO(name="thread"))])
    fit("folder", callbacks=[CheckpointCallback(name="folder")], files=[
        ModelCheckpoint(dirpath="folder", every_n_train_steps=2, save_top_k=1)
    ], strategy=WritesDirectories(device=torch.device("cpu")))  # fmt: skip

    seen["saved"] = {name: load_all(name) for name in ("again", "callback", "io", "thread", "folder")}
    seen["left"] = sorted(os.listdir("callback/ü [1]"))
    with open("seen.json", "w") as file:
        json.dump(seen, file)
    current.checkpoint.save("seen.json", name="seen", latest=False)

    class DiesHalfway(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            if checkpoint["global_step"] == 3:
                with open(path, "wb") as file:
                    file.write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            super().save_checkpoint(checkpoint, path, storage_options)

    last = ModelCheckpoint(dirpath="last", every_n_train_steps=1, save_top_k=1)
    fit("last", files=[last], plugins=[SavingCheckpointIO(DiesHalfway(), name="last")])


def load_all(name):
    """Of all checkpoints of a name, the first one first: its metadata, and the step that it really has."""
    import torch

    found = []
    for reference in reversed(current.checkpoint.list(name=name)):
        folder = current.checkpoint.load(reference, f"loaded/{reference['version_id']}")
        (path,) = [os.path.join(at, file) for at, _, files in os.walk(folder) for file in files]
        inside = torch.load(path, weights_only=False)
        metadata = reference["metadata"]
        found.append([metadata["path"], metadata["step"], inside["global_step"], sorted(metadata["metrics"])])
    return found


def resume():
    """Where the second attempt goes on, and what the first one has seen."""
    import pytorch_lightning as pl

    path = current.checkpoint.resume_path()
    trainer = make_trainer(pl, callbacks=[Begins(pl)])
    trainer.fit(make_model(pl), ckpt_path=path)
    (seen,) = current.checkpoint.list(name="seen")
    current.checkpoint.load(seen, "seen")
    with open("seen/seen.json") as file:
        return [os.path.basename(path), trainer.begun], json.load(file)


def make_trainer(pl, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_steps=STEPS, **quiet, **options)


def make_model(pl):
    from pytorch_lightning.demos.boring_classes import BoringModel

    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            self.log("a/loss", -float(batch_idx))  # Each is better than the one before, which is removed.
            return output

        def val_dataloader(self):
            return []

    return Model()


def BreaksOff(pl):
    class Callback(pl.Callback):
        broken = False

        def on_train_batch_end(self, trainer, *_):
            if not self.broken and trainer.global_step == 2:
                self.broken = True
                raise ZeroDivisionError

    return Callback()


def Begins(pl):
    class Callback(pl.Callback):
        def on_train_start(self, trainer, _):
            trainer.begun = trainer.global_step

    return Callback()


def on_nodes(nodes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(nodes):
        ranks = {"RANK": rank, "GROUP_RANK": rank, "WORLD_SIZE": nodes, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        env = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "nodes"}
        env |= {name: str(value) for name, value in ranks.items()}
        started.append(subprocess.Popen([sys.executable, os.path.abspath(__file__)], env=env))
    assert [process.wait(120) for process in started] == [0] * nodes
    (saved,) = current.checkpoint.list()
    return [saved["metadata"]["path"], saved.get("world"), sorted(os.listdir(current.checkpoint.load(saved, "loaded")))]


def a_node():
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.strategies import DDPStrategy

    from async_ckpt.integrations.lightning import CheckpointCallback

    class Sharded(DDPStrategy):
        def save_checkpoint(self, checkpoint, filepath, storage_options=None):
            os.makedirs(filepath, exist_ok=True)
            torch.save(checkpoint["global_step"], os.path.join(filepath, f"shard-{self.global_rank}.pt"))
            if self.global_rank == 0:
                torch.save(checkpoint, os.path.join(filepath, "meta.pt"))

    files = ModelCheckpoint(dirpath="shards", every_n_train_steps=STEPS, filename="sharded")
    trainer = make_trainer(pl, num_nodes=2, strategy=Sharded(), callbacks=[files, CheckpointCallback()])
    trainer.fit(make_model(pl))


if __name__ == "__main__":
    a_node() if "RANK" in os.environ else LightningAttackFlow()
