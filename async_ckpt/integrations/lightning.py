"""Lightning: every checkpoint that it writes is saved. For ``lightning.pytorch`` and for ``pytorch_lightning``.

Lightning writes its files to the local disk as ever, and removes older ones as ever. As soon as one is written, it is
captured; the upload happens beside the training. Two ways, of which one is enough:

- ``CheckpointCallback`` for any strategy and any ``CheckpointIO``, also those that write directories (FSDP, DeepSpeed);
- ``SavingCheckpointIO`` where no callback can be given, and within Lightning's ``AsyncCheckpointIO``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from . import _nodes, _random, _task

log = logging.getLogger(__name__)

#: The oldest and the newest version that was tried.
TRIED = ("2.6", "2.6")
#: A package with the Trainer, and the package that comes with it.
_PACKAGES = (("lightning.pytorch", "lightning.fabric"), ("pytorch_lightning", "lightning_fabric"))


def _modules() -> list[tuple[Any, Any]]:
    """Of each package that the program uses: the module with the Trainer, and its fabric. If it has imported none yet,
    of each that is installed.
    """
    used = [names for names in _PACKAGES if names[0] in sys.modules]
    used = used or [names for names in _PACKAGES if importlib.util.find_spec(names[0].split(".")[0])]
    found = [(importlib.import_module(trainer), importlib.import_module(fabric)) for trainer, fabric in used]
    if not found:
        raise UsageError(
            "Neither lightning nor pytorch_lightning is installed here", hint="Install the one your flow uses"
        )
    for module, _ in found:
        _task.check_version(module.__name__, module.__version__, *TRIED)
    return found


_MODULES = _modules()
# The two packages have classes of the same names, of which each Trainer knows its own: ours are both.
_CheckpointIO: Any = type("CheckpointIO", tuple(fabric.plugins.CheckpointIO for _, fabric in _MODULES), {})
_Callback: Any = type("Callback", tuple(module.Callback for module, _ in _MODULES), {})
_WRITES_LATER = tuple(module.plugins.io.AsyncCheckpointIO for module, _ in _MODULES)


def _refuse_later_writes(io: Any) -> None:
    if isinstance(io, _WRITES_LATER):
        raise UsageError(
            f"{type(io).__name__} writes after it has returned, so nothing can be saved then",
            hint="Without CheckpointCallback, put it around: plugins=[AsyncCheckpointIO(SavingCheckpointIO())]",
        )


class _Saver:
    """Saves what was written, and a copy of it that is named ``last`` only once."""

    def __init__(self, name: str, latest: bool) -> None:
        self._name, self._latest, self._said = name, latest, False
        self._saved: tuple[object, ...] = ()

    def save(
        self,
        path: str,
        *,
        epoch: Any,
        step: Any,
        metrics: Mapping[str, float],
        resumable: bool,
        nodes: tuple[bool, int] | None = None,
    ) -> None:
        """``nodes``: all ranks call this, each with whether it is the first of its node, and which of all it is."""
        if not os.path.exists(path):
            raise UsageError(
                "Lightning has written no such checkpoint on this machine",
                where=path,
                hint="Let ModelCheckpoint(dirpath=...) be a local directory; the upload is async_ckpt's",
            )
        folder, name = os.path.split(os.path.abspath(path))
        this = (folder, epoch, step, resumable)
        if name.startswith("last") and this == self._saved:
            if not self._said:
                self._said = True
                log.info(f"{path} has what was saved under another name at the same step, and is not saved again")
            return
        options: dict[str, Any] = {"name": self._name, "latest": self._latest and resumable}
        metadata = {"path": name, "epoch": epoch, "step": step, "metrics": metrics}
        if nodes is None:
            _task.checkpoints().save(path=path, metadata=metadata, **options)
        else:
            _nodes.save_together(path, metadata, first_of_node=nodes[0], rank=nodes[1], **options)
        self._saved = this


class RandomStates(_Callback):  # type: ignore[misc]
    """Puts the random states of Python, numpy and torch, of every rank, into Lightning's checkpoints, and takes them up
    from there: without them, a training that is resumed drops other neurons and sees its data in another order.

    ``CheckpointCallback`` does the same; add this one to ``SavingCheckpointIO``.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"random_states": json.dumps(_nodes.of_all(_random.states()))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        saved, ranks = json.loads(state_dict["random_states"]), _nodes.count()
        if len(saved) == ranks:
            _random.restore(saved[_nodes.own_rank()])
        else:
            log.warning(
                f"The checkpoint has the random states of {len(saved)} ranks, and {ranks} resume: their random numbers "
                "are others than those of a training that was not interrupted"
            )


class CheckpointCallback(RandomStates):
    """Saves every checkpoint that the Trainer writes: those of all ``ModelCheckpoint`` callbacks, and your own
    ``trainer.save_checkpoint()``.

    Its metadata has ``path`` (the file's name), ``epoch``, ``step`` and ``metrics`` (what was logged by then). A copy
    named ``last`` of what was saved at the same step is not saved again. Random states are kept as ``RandomStates``
    does.

    Parameters
    ----------
    name : str, default "mfchckpt"
        Of the checkpoints, as for ``current.checkpoint.save``.
    latest : bool, default True
        Whether a retry may load them by itself. Of those with weights only (``save_weights_only``), none does: no
        training can go on from them.

    Raises
    ------
    UsageError
        As training begins: a ``SavingCheckpointIO`` saves the same checkpoints, or Lightning writes them later. As a
        checkpoint is written: it is not on the local disk.
    """

    def __init__(self, name: str = "mfchckpt", latest: bool = True) -> None:
        self._saver = _Saver(name, latest)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        io = trainer.strategy.checkpoint_io
        _refuse_later_writes(io)
        while io is not None:
            if isinstance(io, SavingCheckpointIO):
                raise UsageError(
                    "SavingCheckpointIO and CheckpointCallback save the same files", hint="Leave out one of them"
                )
            io = getattr(io, "checkpoint_io", None)
        if isinstance(vars(trainer).get("save_checkpoint"), functools.partial):
            del trainer.save_checkpoint  # Of a training before this one.
        # It stays: what is written by hand when the training is over is saved as well.
        trainer.save_checkpoint = functools.partial(self._write_and_save, trainer, trainer.save_checkpoint)

    def on_train_batch_end(self, *_: Any) -> None:
        _task.checkpoints().step()

    def _write_and_save(
        self, trainer: Any, write: Any, filepath: Any, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        write(filepath, weights_only, storage_options)  # Returns on every rank when all have written.
        self._save(trainer, os.fspath(filepath), resumable=not weights_only)

    def _save(self, trainer: Any, path: str, *, resumable: bool) -> None:
        metrics = {key: value.item() for key, value in trainer.callback_metrics.items() if value.numel() == 1}
        what = {"epoch": trainer.current_epoch, "step": trainer.global_step, "metrics": metrics, "resumable": resumable}
        if trainer.num_nodes > 1 and trainer.strategy.broadcast(os.path.isdir(path)):
            # Each node has the files of its own ranks.
            self._saver.save(path, nodes=(trainer.local_rank == 0, trainer.global_rank), **what)
        elif trainer.is_global_zero:
            self._saver.save(path, **what)


class SavingCheckpointIO(_CheckpointIO):  # type: ignore[misc]
    """Writes checkpoints through another ``CheckpointIO``, and saves what that has written.

    Its metadata has ``path`` (the file's name), ``epoch``, ``step`` and ``metrics`` (for which a ``ModelCheckpoint``
    keeps this file), and copies named ``last`` are treated alike.

    Strategies that write without a ``CheckpointIO`` (FSDP with sharded states, DeepSpeed) do not come by here.

    Parameters
    ----------
    checkpoint_io : CheckpointIO, optional
        Writes, reads and removes files. Default: Lightning's ``TorchCheckpointIO``.
    name, latest
        As for ``CheckpointCallback``.

    Raises
    ------
    UsageError
        ``checkpoint_io`` writes later; or, as a checkpoint is written, that it is not on the local disk.
    """

    def __init__(self, checkpoint_io: Any = None, name: str = "mfchckpt", latest: bool = True) -> None:
        super().__init__()
        _refuse_later_writes(checkpoint_io)
        self._io = _MODULES[0][1].plugins.TorchCheckpointIO() if checkpoint_io is None else checkpoint_io
        self._saver = _Saver(name, latest)
        self._lock = threading.Lock()
        self._writing, self._removed, self._used = "", False, False

    @property
    def checkpoint_io(self) -> Any:
        """What writes the files."""
        return self._io

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self._used, written = True, os.fspath(path)
        metrics = _metrics(checkpoint, written)
        what = {"epoch": checkpoint.get("epoch"), "step": checkpoint.get("global_step")}
        resumable = "optimizer_states" in checkpoint
        with self._lock:
            self._writing, self._removed = written, False
        try:
            self._io.save_checkpoint(checkpoint, path, storage_options)
            self._saver.save(written, metrics=metrics, resumable=resumable, **what)
        finally:
            with self._lock:
                removed, self._writing = self._removed, ""
            if removed:
                self._io.remove_checkpoint(path)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> Any:
        self._used = True
        return self._io.load_checkpoint(path, *args, **options)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes it from the disk, as soon as it is saved; what was saved is not concerned."""
        with self._lock:  # Another thread may be writing: within Lightning's AsyncCheckpointIO.
            if os.fspath(path) == self._writing:
                self._removed = True
                return
        self._io.remove_checkpoint(path)

    def teardown(self) -> None:
        """Lightning calls this at the end."""
        self._io.teardown()
        if not self._used and _task.rank() == 0:
            log.warning(
                "Lightning has written no checkpoint through SavingCheckpointIO, so none was saved. If its strategy "
                "writes by itself (FSDP with sharded states, DeepSpeed), use CheckpointCallback"
            )


def _metrics(checkpoint: Mapping[str, Any], path: str) -> dict[str, float]:
    """Of each ``ModelCheckpoint`` that keeps this file for a metric: that metric, and its value."""
    states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, Mapping)]
    kept = [(state.get("monitor"), (state.get("best_k_models") or {}).get(path)) for state in states]
    return {monitor: float(value) for monitor, value in kept if monitor and value is not None}
