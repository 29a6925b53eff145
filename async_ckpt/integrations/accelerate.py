"""Accelerate: ``save_state`` saves what ``accelerator.save_state`` has written, and ``load_state`` resumes from it."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

import accelerate

from . import _nodes, _task

log = logging.getLogger(__name__)

#: The oldest and the newest version that was tried.
TRIED = ("1.6", "1.15")
_FRAMEWORK = "accelerate"


def save_state(
    accelerator: accelerate.Accelerator,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    name: str = "mfchckpt",
    latest: bool = True,
    **options: Any,
) -> Any | None:
    """``accelerator.save_state``, and save what it has written: models, optimizers, schedulers, registered objects, the
    random states of every process. All processes call this; it returns when all of them have written.

    Parameters
    ----------
    accelerator : Accelerator
        With ``ProjectConfiguration(automatic_checkpoint_naming=True)`` it writes where that says, and ``total_limit``
        may remove it again at any time.
    output_dir : str or PathLike, optional
        Where it writes otherwise. Default: a new directory, removed as soon as it is captured.
    metadata : mapping, optional
        To find again what Accelerate does not know: the epoch, and how many batches of it are done. That of the main
        process counts.
    name, latest
        As for ``current.checkpoint.save``.
    **options
        For ``accelerator.save_state``, such as ``safe_serialization``.

    Returns
    -------
    Reference or None
        On the main process, what ``current.checkpoint.save`` returns. None on the others (over several nodes without a
        common disk, on those that are not the first of their node).

    Raises
    ------
    UsageError, SnapshotError, SpoolError
        As for ``current.checkpoint.save``.
    """
    _task.check_version("accelerate", accelerate.__version__, *TRIED)
    own = output_dir is None and not accelerator.project_configuration.automatic_checkpoint_naming
    first = accelerator.is_local_main_process
    folder = _nodes.common_directory(first_of_node=first) if own else output_dir
    try:
        written = accelerator.save_state(None if folder is None else os.fspath(folder), **options)
        accelerator.wait_for_everyone()
        kept = {
            **(metadata or {}),
            "framework": _FRAMEWORK,
            "processes": accelerator.num_processes,
            "iteration": accelerator.save_iteration,
        }
        saved = _nodes.save_together(
            os.fspath(written), kept, first_of_node=first, rank=accelerator.process_index,
            name=name, latest=latest,
        )  # fmt: skip
        if own:
            accelerator.wait_for_everyone()  # No process takes files away that another one links.
    finally:
        if own and first:
            shutil.rmtree(str(folder), ignore_errors=True)
    return saved


def load_state(
    accelerator: accelerate.Accelerator,
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "mfchckpt",
    **options: Any,
) -> dict[str, Any] | None:
    """Resume from the newest checkpoint that ``save_state`` made in this task, or from what the step was loaded with.

    All processes call this, after ``accelerator.prepare``, and get the same one.

    Parameters
    ----------
    path : str or PathLike, optional
        A directory to resume from instead, that of a checkpoint which is loaded already.
    name : str, default "mfchckpt"
        Only of this name.
    **options
        For ``accelerator.load_state``.

    Returns
    -------
    dict or None
        The metadata it was saved with; ``{}`` for a ``path``. None if there is nothing to resume from.

    Raises
    ------
    UsageError, NotFound, IntegrityError, StoreError
        As for ``current.checkpoint.load``.
    """
    _task.check_version("accelerate", accelerate.__version__, *TRIED)
    if path is not None:
        accelerator.load_state(os.fspath(path), **options)
        _go_on_counting(accelerator, 0)
        return {}
    newest = _nodes.of_all(_task.newest(name, _FRAMEWORK) if accelerator.is_main_process else None)[0]
    if newest is None:
        _go_on_counting(accelerator, 0)
        return None
    metadata: dict[str, Any] = newest["metadata"]
    if metadata["processes"] != accelerator.num_processes:
        log.warning(
            f"{newest['key']} was saved by {metadata['processes']} processes, and is loaded by "
            f"{accelerator.num_processes}: their random states and their shares of the data differ"
        )
    checkpoints = _task.checkpoints()
    if _task.is_in_directory(newest):
        accelerator.load_state(checkpoints.directory, **options)
    else:
        first = accelerator.is_local_main_process
        folder = _nodes.common_directory(first_of_node=first)
        try:
            if first:
                checkpoints.load(newest, folder)
            accelerator.wait_for_everyone()
            accelerator.load_state(folder, **options)
            accelerator.wait_for_everyone()
        finally:
            if first:
                shutil.rmtree(folder, ignore_errors=True)
    _go_on_counting(accelerator, metadata["iteration"])
    return metadata


def _go_on_counting(accelerator: accelerate.Accelerator, saved: int) -> None:
    """Give the next ``checkpoint_<n>`` a number that none has: one that an earlier attempt left may be half."""
    project = accelerator.project_configuration
    if not project.automatic_checkpoint_naming:
        return
    folder = os.path.join(accelerator.project_dir, "checkpoints")
    there = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = [int(found[1]) for entry in there if (found := re.fullmatch(r"checkpoint_(\d+)", entry))]
    project.iteration = max(_nodes.of_all(max([project.iteration, saved, *(number + 1 for number in numbers)])))
