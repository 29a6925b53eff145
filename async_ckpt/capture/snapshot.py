"""What a snapshot is when it has been captured, and how it is removed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from ..manifest import Manifest
from ..system.files import folders_below, remove_tree
from .content import pack_path
from .walk import ANNEX_PREFIX


@dataclass
class Snapshot:
    """A snapshot that is complete and not yet admitted, as its saver has it."""

    manifest: Manifest
    #: By relative path of each hard-linked file: the descriptor that holds its lease.
    leases: dict[str, int] = field(default_factory=dict)
    #: Symbolic links that led out of what was saved, and were captured as what they point to.
    followed: list[str] = field(default_factory=list)

    def drop(self, target: str) -> None:
        """Undo the capture: let go of the leases, remove ``target``."""
        for fd in self.leases.values():
            os.close(fd)
        remove_snapshot(target)


def remove_snapshot(target: str) -> None:
    """Remove a snapshot from the disk; one that is gone is no error."""
    remove_tree(target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pack_path(target))


def annex_in(path: str) -> str | None:
    """A directory of ours below ``path`` in which snapshots lie (or that cannot be looked into); None: there is none.

    They are made as far above as can be; but where nothing else can be written to, inside of what somebody saves.
    """
    for folder, names, _ in folders_below(path):
        for name in names:
            if name.startswith(ANNEX_PREFIX) and name.removeprefix(ANNEX_PREFIX).isdecimal():
                annexes = os.path.join(folder, name)
                try:
                    if any(os.listdir(os.path.join(annexes, annex)) for annex in os.listdir(annexes)):
                        return annexes
                except FileNotFoundError:
                    continue
                except OSError:
                    return annexes
    return None
