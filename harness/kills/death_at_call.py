"""Death at a system call: what a process had brought to the disk by then stays, and nothing after it happens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

#: Calls that change what is on a disk: between two of them, one moment to die at is like another.
_CALLS = (
    "copy_file_range", "ftruncate", "link", "mkdir", "pwrite", "rename", "replace", "rmdir", "symlink", "unlink",
    "write",
)  # fmt: skip


class Killed(BaseException):
    """Stands for a SIGKILL: nothing but what simulates one may catch it."""


def _raise() -> NoReturn:
    raise Killed


class Fuse:
    """Blows at one of the calls in ``_CALLS``, and at every one after it: handlers that clean up do nothing.

    Parameters
    ----------
    after : int
        So many calls still happen.
    torn : bool
        If the last one is a ``write``, half of its bytes are written.
    die : callable
        Ends the process, or this code.
    """

    def __init__(self, after: int, *, torn: bool = False, die: Callable[[], NoReturn] = _raise) -> None:
        self._left, self._torn, self._die = after, torn, die
        self.blown = False

    @contextlib.contextmanager
    def armed(self) -> Iterator[Fuse]:
        """Within the block; a ``Killed`` that comes out of it has done its work."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _CALLS:
                patch.setattr(os, name, self._guarded(name, getattr(os, name)))
            with contextlib.suppress(Killed):
                yield self

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            if self._left == 0:
                if self._torn and not self.blown and name == "write":
                    fd, data = arguments
                    call(fd, data[: len(data) // 2])
                self.blown = True
                self._die()
            self._left -= 1
            return call(*arguments, **keywords)

        return guarded
