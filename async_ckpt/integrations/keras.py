"""Keras 3: what a training needs to go on exactly where it was is saved, and taken up by itself in a retry.

``CheckpointCallback`` is like ``keras.callbacks.BackupAndRestore``, but does not wait for the store, and also goes on
within an epoch. ``SavedModelCheckpoint`` is ``keras.callbacks.ModelCheckpoint`` whose files are saved.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from ..errors import UsageError
from . import _random, _task

log = logging.getLogger(__name__)

#: The oldest and the newest version that was tried.
TRIED = ("3.10", "3.15")
_FRAMEWORK = "keras"
#: The files of a checkpoint: weights and optimizer as Keras writes them; the variables that Keras leaves out; the rest.
_WEIGHTS, _VARIABLES, _STATE = "model.weights.h5", "variables.npz", "training.json"


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves the training as it goes, and takes up the newest of these checkpoints as ``fit`` begins.

    A checkpoint has the model's weights and its optimizer, the epoch and the number of batches in it, the seeds of all
    layers, the metrics, and the random states of Python, numpy and torch. If it is of the middle of an epoch, ``fit``
    begins that epoch again and passes over the batches that were trained already: they are read, but not computed.
    What other callbacks have counted (``EarlyStopping``) is not in it.

    Its metadata has ``epoch`` and ``batches`` (with which a training goes on) and ``metrics`` (the logs).

    Parameters
    ----------
    every_epochs : int or None, default 1
        Save at the end of each so-many-th epoch. None: at the end of none.
    every_batches : int, optional
        Save after so many batches as well.
    name : str, default "mfchckpt"
        Of the checkpoints. Several trainings in one step (a second ``fit``) need a name each.
    latest : bool, default True
        As for ``current.checkpoint.save``.
    resume : bool, default True
        Take up the newest checkpoint of this name.

    Raises
    ------
    UsageError
        A number is not positive; as ``fit`` begins, the model is not built, or is another one than was saved.
    """

    def __init__(
        self,
        every_epochs: int | None = 1,
        every_batches: int | None = None,
        *,
        name: str = "mfchckpt",
        latest: bool = True,
        resume: bool = True,
    ) -> None:
        super().__init__()
        for number in (every_epochs, every_batches):
            if number is not None and number < 1:
                raise UsageError(f"A checkpoint can be saved every 1, 2, … epochs or batches, not every {number}")
        self._every_epochs, self._every_batches = every_epochs, every_batches
        self._name, self._latest, self._resume = name, latest, resume
        self._epoch = self._since = 0
        #: What was loaded, until the epoch begins with which the training goes on.
        self._loaded: dict[str, Any] | None = None
        #: Calls of ``train_function`` that are passed over still, and what it is otherwise.
        self._passed_over, self._compute = 0, None
        self._begin: dict[str, Any] = {}
        _task.check_version("keras", keras.__version__, *TRIED)

    # -- resume ----------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        if self._passed_over:  # A fit() before this one was broken off.
            self._end_passing_over()
        if not self._resume:
            return
        self._resume = False  # A second fit() with this callback goes on from the first one.
        newest = _task.newest(self._name, _FRAMEWORK)
        if newest is None:
            return
        checkpoints = _task.checkpoints()
        if _task.is_in_directory(newest):
            self._take_up(checkpoints.directory, newest["key"])
        else:
            with _directory() as folder:
                checkpoints.load(newest, folder)
                self._take_up(folder, newest["key"])

    def _take_up(self, folder: str, key: str) -> None:
        model = self.model
        if not model.built:
            raise UsageError(
                "The checkpoint cannot be taken up: the model is not built yet",
                where=key,
                hint="Begin it with keras.Input(...), or call it once on a batch of data before fit()",
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        try:
            model.load_weights(os.path.join(folder, _WEIGHTS))
        except ValueError as error:
            raise UsageError(
                f"The model is not the one that was saved: {str(error).splitlines()[0]}",
                where=key,
                hint="Build the same model, or save under another name=",
            ) from error
        with open(os.path.join(folder, _STATE)) as file:
            self._loaded = json.load(file)
        with np.load(os.path.join(folder, _VARIABLES)) as saved:
            self._loaded["variables"] = [saved[str(number)] for number in range(len(saved.files))]
        model._initial_epoch = self._loaded["epoch"]  # As BackupAndRestore does it.
        log.info(f"The training goes on from {key}: epoch {self._loaded['epoch']}, batch {self._loaded['batches']}")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        model, loaded, self._loaded = self.model, self._loaded, None
        if loaded is None:
            self._begin = _random.states()
            return
        model._initial_epoch = None
        variables = _variables_beside_weights(model)
        if [tuple(each.shape) for each in variables] != [each.shape for each in loaded["variables"]]:
            log.warning("The seeds and metrics of this model are not those that were saved, and begin anew")
        else:
            for variable, value in zip(variables, loaded["variables"], strict=True):
                variable.assign(value)
        self._begin = loaded["begin"]
        _random.restore(self._begin)
        if loaded["batches"]:
            self._pass_over(model, loaded)

    def _pass_over(self, model: Any, loaded: Mapping[str, Any]) -> None:
        """Let ``fit`` read the batches that were trained already, and not compute them."""
        self._compute, together = model.train_function, model.steps_per_execution
        self._passed_over = -(-loaded["batches"] // together)
        logs, backend = model.get_metrics_result(), keras.backend.backend()

        def read(*arguments: Any) -> Any:
            if backend != "torch":  # Torch's were read before.
                for _ in range(together):
                    next(arguments[-1])
            if self._passed_over == 1:
                model.train_function = self._compute
                _random.restore(loaded["now"])
            # JAX hands the state on from call to call.
            return (dict(logs), arguments[0]) if backend == "jax" else dict(logs)

        model.train_function = read

    def _end_passing_over(self) -> None:
        self._passed_over, self._model.train_function = 0, self._compute

    # -- save ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._passed_over:
            self._passed_over -= 1
            return
        _task.checkpoints().step()
        # With steps_per_execution, batch is the last one of several.
        self._since += int(self._model.steps_per_execution)
        if self._every_batches is not None and self._since >= self._every_batches:
            self._since = 0
            self._save(self._epoch, batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._passed_over:
            self._end_passing_over()
            raise UsageError(
                "This epoch has fewer batches than were trained of it when the checkpoint was saved",
                hint="Go on with the same data and batch size, or save under another name=",
            )
        if self._every_epochs is not None and (epoch + 1) % self._every_epochs == 0:
            self._since = 0
            self._save(epoch + 1, 0, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._model._initial_epoch, self._loaded = None, None  # Where there was no epoch left to train.

    def _save(self, epoch: int, batches: int, logs: Mapping[str, Any] | None) -> None:
        if _task.rank():
            return
        now = _random.states()
        state = {"epoch": epoch, "batches": batches, "begin": self._begin if batches else now, "now": now}
        # New files for each: what was captured before is not written over, which its trainer would have to wait for.
        with _directory() as folder:
            model = self.model
            model.save_weights(os.path.join(folder, _WEIGHTS))
            values = [keras.ops.convert_to_numpy(each) for each in _variables_beside_weights(model)]
            np.savez(os.path.join(folder, _VARIABLES), **{str(number): value for number, value in enumerate(values)})
            with open(os.path.join(folder, _STATE), "w") as file:
                json.dump(state, file)
            metadata = {"framework": _FRAMEWORK, "epoch": epoch, "batches": batches, "metrics": dict(logs or {})}
            _task.checkpoints().save(path=folder, name=self._name, latest=self._latest, metadata=metadata)


class SavedModelCheckpoint(keras.callbacks.ModelCheckpoint):  # type: ignore[misc]
    """``keras.callbacks.ModelCheckpoint`` that saves each file as soon as it is written.

    Its metadata has ``path`` (the file's name), ``epoch`` (from 0), and ``metrics`` (the logs).

    Parameters
    ----------
    *arguments, **options
        Of ``ModelCheckpoint``.
    name : str, default "model"
        Of the checkpoints.
    latest : bool, default False
        Whether a retry may load them by itself; leave that to ``CheckpointCallback`` where you use both.
    """

    def __init__(self, *arguments: Any, name: str = "model", latest: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._name, self._latest, self._epoch = name, latest, 0
        _task.check_version("keras", keras.__version__, *TRIED)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.save_freq == "epoch":
            return
        with self._what_is_written(self._epoch, logs):
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._what_is_written(epoch, logs):
            super().on_epoch_end(epoch, logs)

    @contextlib.contextmanager
    def _what_is_written(self, epoch: int, logs: Mapping[str, Any] | None) -> Iterator[None]:
        before = self._files()
        yield
        if _task.rank():
            return
        for path, written in self._files().items():
            if before.get(path) != written:
                metadata = {"path": os.path.basename(path), "epoch": epoch, "metrics": dict(logs or {})}
                _task.checkpoints().save(path=path, name=self._name, latest=self._latest, metadata=metadata)

    def _files(self) -> dict[str, tuple[int, int, int]]:
        """What may be this callback's: ``{epoch}`` and the like stand for anything."""
        parts = re.split(r"\{[^}]*\}", self.filepath)
        found = {}
        for path in glob.glob("*".join(map(glob.escape, parts))):
            status = os.stat(path)
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return found


@contextlib.contextmanager
def _directory() -> Iterator[str]:
    """A new one on the spool's disk, removed at the end: what was saved of it stays."""
    folder = _task.new_directory()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _variables_beside_weights(model: Any) -> list[Any]:
    """Variables that Keras writes into no file: seeds of layers and of ``keras.random``, metrics."""
    weights = {id(each) for each in model.weights}
    seeds = [each for each in model.variables if id(each) not in weights]
    if (generator := global_state.get_global_attribute("global_seed_generator")) is not None:
        seeds.append(generator.state)
    known = weights | {id(each) for each in seeds}
    return seeds + [each for each in model.metrics_variables if id(each) not in known]
