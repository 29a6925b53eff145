"""The options of ``save()``: declared and checked here, whoever hands them on. What each means to users stands in
``current.checkpoint.save`` (``metaflow_extensions/async_ckpt/plugins/checkpoint.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .. import capture, layout
from ..errors import UsageError
from ..ranks import who


@dataclass(frozen=True)
class SaveOptions:
    """How one checkpoint is saved."""

    name: str = layout.DEFAULT_NAME
    #: Whatever the user has at hand; ``metadata.plain`` makes JSON of it.
    metadata: Any = None
    latest: bool = True
    storage_format: str = layout.STORAGE_FORMATS[0]
    #: How the files are captured, one of ``capture.STRATEGIES``.
    snapshot: str = capture.STRATEGIES[0]
    collective: bool = False
    rank: int | None = None
    world_size: int | None = None

    def checked(self) -> SaveOptions:
        """These options, with the name as text.

        Raises
        ------
        UsageError
            One of them is not valid, or two of them exclude each other.
        """
        name = layout.check_name(self.name)
        if self.storage_format not in layout.STORAGE_FORMATS:
            raise UsageError(
                f"storage_format={self.storage_format!r} is unknown",
                hint=f"Use one of {', '.join(layout.STORAGE_FORMATS)}",
            )
        if self.collective and self.storage_format != "files":
            raise UsageError(
                f"A collective save has no storage_format={self.storage_format!r}",
                hint="Use 'files': all ranks' files lie side by side",
            )
        capture.check_strategy(self.snapshot)
        return replace(self, name=name)

    def ranks(self, task: layout.TaskInfo) -> who.Ranks | None:
        """Which rank of a collective save this process is, and of how many; None: the save is not collective.

        Raises
        ------
        UsageError
            Nobody says which rank this is, or what is said makes no sense.
        """
        if self.collective:
            return who.find(task, self.rank, self.world_size)
        if self.rank is not None or self.world_size is not None:
            raise UsageError("rank and world_size are for collective saves", hint="Add collective=True")
        return None
