"""Ways to save a state: PyTorch's own, this package's and the incumbent's. ``peers.py`` has the others.

Each has a name, and says where the checkpoint is once ``drain`` has returned.
"""

import os
import shutil
import tempfile

import torch
from metaflow import current

from . import model


class Missing(Exception):
    """It cannot be measured here; says why."""


class Saver:
    """One at a time is under way: ``drain`` is called before the next ``save``."""

    name = kept_in = ""

    def __init__(self, training, work):
        self.training, self.work = training, work

    def save(self, state):
        """What the loop waits for."""
        raise NotImplementedError

    def wait(self):
        """What the loop waits for before it changes the tensors."""

    def drain(self):
        """Until the checkpoint is where it is kept."""

    def restored(self):
        """The state that was saved last, read from there."""
        raise NotImplementedError

    def discard(self):
        """Take away what was saved."""

    def close(self):
        pass


class Copy(Saver):
    """No checkpoint: how fast this machine copies these tensors at all, into memory that was used before."""

    name, kept_in = "copy_ of the tensors", "memory (it is only the measure)"

    def __init__(self, training, work):
        super().__init__(training, work)
        self._held = {}

    def save(self, state):
        done = set()
        for path, tensor in model.leaves(state):
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in done:
                done.add(tensor.data_ptr())
                if path not in self._held:
                    pinned = tensor.device.type == "cuda"
                    self._held[path] = torch.zeros_like(tensor, device="cpu", pin_memory=pinned)
                self._held[path].copy_(tensor, non_blocking=True)
        self.training.synchronize()


class TorchSave(Saver):
    """A new file, renamed into place."""

    name, kept_in = "torch.save", "a file on the local disk"

    def __init__(self, training, work):
        super().__init__(training, work)
        self.directory = tempfile.mkdtemp(dir=work)
        self.path = os.path.join(self.directory, "model.pt")

    def save(self, state):
        torch.save(state, f"{self.path}.new")
        os.rename(f"{self.path}.new", self.path)

    def restored(self):
        return torch.load(self.path)

    def discard(self):
        os.unlink(self.path)


class InStore(TorchSave):
    """``torch.save`` and then the ``save()`` of whichever package this task has."""

    kept_in = "the store"

    def __init__(self, training, work):
        super().__init__(training, work)
        self._ours = hasattr(current.checkpoint, "flush")
        self.name = f"torch.save + {'save()' if self._ours else 'metaflow-checkpoint'}"
        self.saved = None

    def save(self, state):
        super().save(state)
        self.saved = current.checkpoint.save(self.directory)

    def drain(self):
        if self._ours:
            current.checkpoint.flush()

    def restored(self, **options):
        directory = tempfile.mkdtemp(dir=self.work)
        reference = self.saved.to_dict() if hasattr(self.saved, "to_dict") else dict(self.saved)
        current.checkpoint.load(reference, directory)
        try:
            return torch.load(os.path.join(directory, "model.pt"), **options)
        finally:
            shutil.rmtree(directory)


class SaveState(Saver):
    """``save_state``: no file is written by the trainer."""

    kept_in = "the store"

    def __init__(self, training, work, staging):
        super().__init__(training, work)
        if not hasattr(current.checkpoint, "save_state"):
            raise Missing("this package has no save_state")
        self.name = f"save_state, {staging}"
        self._staging = staging
        self.saved = None

    def save(self, state):
        self.saved = current.checkpoint.save_state(state, name=f"state-{self._staging}", staging=self._staging)

    def wait(self):
        self.saved.staged()

    def drain(self):
        current.checkpoint.flush()

    def restored(self, **options):
        return current.checkpoint.load_state(dict(self.saved), **options)


def ours(training, work, only):
    """What this package's task can do, by name, and why the others cannot be done. ``only``: of these names."""
    from . import peers

    makers = {
        "copy": Copy, "torch.save": TorchSave, "save": InStore,
        "sync": lambda *given: SaveState(*given, "sync"), "async": lambda *given: SaveState(*given, "async"),
        **peers.MAKERS,
    }  # fmt: skip
    found, missing = {}, {}
    for key in only or makers:
        try:
            found[key] = makers[key](training, work)
        except Missing as reason:
            missing[key] = str(reason)
    return found, missing


def theirs(training, work, only):
    """What the incumbent's task can do."""
    return {"peer": InStore(training, work)}, {}
