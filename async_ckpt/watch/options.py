"""The options of a watch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import layout
from ..errors import UsageError
from ..task.options import SaveOptions
from .group import Grouping
from .names import Pattern

#: From the path of a checkpoint to its metadata, or the name of a JSON file in it (see ``metadata_file``).
MetadataFrom = Callable[[str], Mapping[str, Any]] | str


@dataclass(frozen=True)
class WatchOptions:
    """Which entries of a directory are checkpoints, when they are finished, and how they are saved.

    Raises
    ------
    UsageError
        Something is not valid, or contradicts another; nothing was begun.
    """

    pattern: str = "checkpoint-*"
    #: Seconds; None: ``METAFLOW_ASYNC_CKPT_WATCH_SETTLE_S``.
    settle: float | None = None
    #: Name of the file in a checkpoint (for a file: beside it, ``<its name>.<done>``) that says that it is finished.
    done: str | None = None
    metadata_from: MetadataFrom | None = None
    name: str = layout.DEFAULT_NAME
    latest: bool = True
    #: Whether each is removed from the directory as soon as it is saved.
    move: bool = False
    #: So many stay on the disk, once they are in the store; None: all.
    keep: int | None = None
    #: Whether what is there when the watch begins is saved as well.
    existing: bool = True
    #: Which files belong together (see ``group``): "auto", a regular expression, or None.
    group: str | None = "auto"
    storage_format: str = SaveOptions.storage_format
    snapshot: str = SaveOptions.snapshot

    def __post_init__(self) -> None:
        Pattern(self.pattern)
        Grouping(self.group)
        SaveOptions(name=self.name, storage_format=self.storage_format, snapshot=self.snapshot).checked()
        if self.settle is not None and (not _is_number(self.settle) or not 0 <= self.settle < float("inf")):
            raise UsageError(f"settle={self.settle!r} is not a number of seconds")
        if self.done is not None and (not isinstance(self.done, str) or not self.done or os.path.isabs(self.done)):
            raise UsageError(f"done={self.done!r} is not the name of a file in a checkpoint", hint="E.g. done='DONE'")
        if self.keep is not None and (not isinstance(self.keep, int) or isinstance(self.keep, bool) or self.keep < 1):
            raise UsageError(f"keep={self.keep!r} is not a number of checkpoints", hint="The newest one always stays")
        if self.move and self.keep is not None:
            raise UsageError("move and keep exclude each other", hint="move leaves nothing on the disk that keep could")
        given = self.metadata_from
        if given is not None and not isinstance(given, str) and not callable(given):
            raise UsageError(
                f"metadata_from={given!r} is neither a function of the path nor the name of a JSON file",
                hint="E.g. metadata_from='trainer_state.json'",
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
