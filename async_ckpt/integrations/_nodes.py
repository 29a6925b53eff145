"""What ranks tell each other through ``torch.distributed``, and a directory that all of them have written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from . import _task


def of_all(value: Any) -> list[Any]:
    """What each rank gives, in their order; all ranks call this. A training of one process is alone."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def own_rank() -> int:
    """Which one this process is among those of ``of_all``."""
    import torch.distributed as dist

    return int(dist.get_rank()) if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many they are."""
    import torch.distributed as dist

    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def common_directory(*, first_of_node: bool) -> str:
    """An empty directory for all ranks of a node, on the spool's disk; the first of them removes it."""
    made: list[str | None] = of_all(_task.new_directory() if first_of_node else None)
    # Ranks are counted node by node.
    return next(path for path in reversed(made[: own_rank() + 1]) if path is not None)


def save_together(
    path: str, metadata: Mapping[str, Any], *, first_of_node: bool, rank: int, **options: Any
) -> Any | None:
    """Save a directory that all ranks have written; all of them call this.

    On one machine, and where all nodes see the same directory, rank 0 saves it. Where each node has a part of it, they
    save one checkpoint together. A file that several nodes have is taken from the first.

    Parameters
    ----------
    metadata : mapping
        That of rank 0 counts.
    first_of_node : bool
        Whether this rank is the first one on its machine.
    rank : int
        This one, of all.
    **options
        ``name`` and ``latest``, as for ``current.checkpoint.save``.

    Returns
    -------
    Reference or None
        None on ranks that save nothing.
    """
    answers = of_all((_files(path) if first_of_node else None, dict(metadata)))
    taken: set[str] = set()
    parts: dict[int, set[str]] = {}
    for number, (files, _) in enumerate(answers):
        if own := set(files or ()) - taken:
            parts[number], taken = own, taken | own
    if rank not in parts:
        return None
    options["metadata"] = answers[0][1]
    if len(parts) == 1:
        return _task.checkpoints().save(path=path, **options)
    part = _task.new_directory()
    try:
        for file in sorted(parts[rank]):
            os.makedirs(os.path.dirname(os.path.join(part, file)), exist_ok=True)
            _link(os.path.join(path, file), os.path.join(part, file))
        place = list(parts).index(rank)
        return _task.checkpoints().save(path=part, collective=True, rank=place, world_size=len(parts), **options)
    finally:
        shutil.rmtree(part)


def _files(path: str) -> list[str]:
    """All files below a directory, relative to it."""
    return [os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # A file system without links.
        shutil.copy2(source, target)
