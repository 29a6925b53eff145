"""What all integrations ask: who saves here, which rank this is, whether the framework's version was tried."""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from ..config import ENV_SPOOL
from ..errors import UsageError
from ..task.checkpointer import Checkpointer

log = logging.getLogger(__name__)

#: The number of this rank, as torchrun and most others, Open MPI, and Metaflow (of a gang's node) say it.
_RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "MF_PARALLEL_NODE_INDEX")


def checkpoints() -> Any:
    """``current.checkpoint`` in the process of a step, ``Checkpoint()`` in a process that the step started.

    Both have ``save``, ``load``, ``list`` and so on. Give the arguments by name: their order is not the same.

    Raises
    ------
    UsageError
        This process belongs to no step with ``@checkpoint``.
    """
    from metaflow import Checkpoint, current

    if (of_step := getattr(current, "checkpoint", None)) is not None:
        return of_step
    if not os.environ.get(ENV_SPOOL):
        raise UsageError(
            "Nothing can be saved or resumed here: this process belongs to no step with @checkpoint",
            hint="Put @checkpoint over the step. A process that the step starts must inherit its environment",
        )
    return Checkpoint()


def reader() -> Any:
    """What ``load`` and ``list`` are asked of, where nothing is saved: also outside of a step."""
    from metaflow import Checkpoint

    return Checkpoint()


def new_directory() -> str:
    """An empty directory that this process may save or load: on the spool's disk, and removed with the spool if
    nobody has removed it before. Outside of a step, a temporary one, which whoever asked for it removes.

    Raises
    ------
    SpoolError
        It cannot be made; or the step has ended.
    """
    if not os.environ.get(ENV_SPOOL):
        return tempfile.mkdtemp(prefix="async-ckpt-")
    return Checkpointer.from_environment().spool.new_work_directory()


def never_rewritten(directory: str) -> None:
    """Say that nobody rewrites the files in a directory, nor those of these names in later ones that are saved from the
    same place: then a save links them at once, however large they are.
    """
    habits = Checkpointer.from_environment().spool.habits()
    for folder, _, names in os.walk(os.path.realpath(directory)):
        for name in names:
            habits.learn_new(os.path.join(folder, name))


def is_one_machine() -> bool:
    """Whether all processes that can save in this step's name are on one machine: it is no gang of several nodes."""
    return Checkpointer.from_environment().task.nodes == 1


def newest(name: str, framework: str) -> dict[str, Any] | None:
    """The newest checkpoint of this name in this task whose metadata says that it is of this ``framework``, else what
    the step was loaded with if that is one. None if there is none.

    Raises
    ------
    UsageError, StoreError
        As ``current.checkpoint.list``.
    """
    there = checkpoints()
    found = [*there.list(name=name), *filter(None, [getattr(there, "info", None)])]
    of_name = (each for each in found if each["name"] == name)
    return next((dict(each) for each in of_name if (each["metadata"] or {}).get("framework") == framework), None)


def is_in_directory(reference: Mapping[str, Any]) -> bool:
    """Whether this checkpoint is what ``current.checkpoint.directory`` was loaded with."""
    info = getattr(checkpoints(), "info", None)
    return info is not None and bool(info["key"] == reference["key"])


def rank() -> int:
    """Which rank this process is, from 0: as its launcher says, or else the number of its node in a gang.

    Raises
    ------
    UsageError
        What they say is no number.
    """
    name = next((name for name in _RANK if os.environ.get(name)), None)
    if name is None:
        return 0
    text = os.environ[name]
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{name}={text!r} is not the number of a rank", hint=f"Unset {name} or correct it")
    return int(text)


@functools.lru_cache(maxsize=64)
def check_version(framework: str, version: str, least: str, most: str) -> None:
    """Say once if a framework's version is outside of the range that was tried.

    Parameters
    ----------
    framework, version : str
        Its name, and the version that is installed.
    least, most : str
        The oldest and the newest that were tried, such as ``"4.46"`` and ``"5.24"``. Of a version only as many parts
        are looked at as these have: 5.24.3 is a 5.24.
    """
    if not _parts(least) <= _parts(version)[: len(_parts(least))] or _parts(version)[: len(_parts(most))] > _parts(
        most
    ):
        log.warning(
            f"{framework} {version} was not tried with this package ({least} to {most} were): see that a training "
            "resumes as you expect"
        )


def _parts(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: those of ``2.13.0+cpu`` are 2, 13, 0; of ``5.0rc1``, 5, 0."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()
