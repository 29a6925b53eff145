"""A snapshot in the making: one strategy captures what the walk finds.

A file that is missing when its turn comes is an error: a snapshot is whole or it is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..config import Config
from ..errors import SnapshotError, os_reason
from ..manifest import LINK, Directory, FileEntry, Link, Manifest
from ..source import pack_path
from .links import failure, refused
from .origin import give_back, origin_path
from .walk import ANNEX_PREFIX, Item, walk


@dataclass
class Captured:
    """A snapshot that is complete but not yet admitted.

    ``leases`` maps the relative path of each hard-linked file to the descriptor that holds its lease.
    """

    manifest: Manifest
    leases: dict[str, int] = field(default_factory=dict)
    #: Symbolic links that led out of what was saved, and were captured as what they point to.
    followed: list[str] = field(default_factory=list)
    #: For ``move``: where the item stood, and where it stands now; it is put back if it cannot be admitted.
    moved: tuple[str, str] | None = None

    def drop(self, target: str) -> None:
        """Undo the capture: give back what was moved, let go the leases, remove ``target``.

        Raises
        ------
        SnapshotError
            What was moved could not get its old place back; says where it is.
        """
        for fd in self.leases.values():
            os.close(fd)
        if self.moved is not None:
            self._put_back(target, *self.moved)
        else:
            remove_snapshot(target)

    def _put_back(self, target: str, original: str, now: str) -> None:
        try:
            place = give_back(target)
        except OSError as error:
            raise SnapshotError(
                f"{original} is not saved, and cannot be put back from {now}: {os_reason(error)}", where=original,
                hint="It stays in the spool; the end of the step, or the next attempt, tries again",
            ) from error  # fmt: skip
        if place not in (original, None):
            raise SnapshotError(
                f"{original} is not saved, and something else has taken its place meanwhile: it is {place} now"
            )


def remove_snapshot(target: str) -> None:
    """Give back a snapshot's disk; one that is gone is no error."""
    # First: what is not whole any more is put back by nobody.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(origin_path(target))
    remove_tree(target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pack_path(target))


def annex_in(path: str) -> str | None:
    """A directory of ours below ``path`` in which snapshots lie (or that cannot be looked into); None: there is none.

    They are made as far above as can be; but where nothing else can be written to, inside of what somebody saves.
    """
    for folder, names, _ in os.walk(path):
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


def remove_tree(path: str) -> None:
    """Remove a directory, read-only folders in it included; one that is gone is no error."""

    def make_writable(function: Callable[[str], object], blocked: str, _: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(os.path.dirname(blocked), 0o700)
            os.chmod(blocked, 0o700, follow_symlinks=False) if os.path.isdir(blocked) else None
            function(blocked)

    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path, onerror=make_writable)


#: O_NONBLOCK: a FIFO that took a file's place meanwhile must not hold us up.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class OpenFile(NamedTuple):
    """A regular file to capture: open descriptor, where it stands, its relative path, and its status when it was
    opened.
    """

    fd: int
    source: str
    path: str
    status: os.stat_result


class FileStrategy(Protocol):
    """How one regular file gets into a snapshot."""

    def capture_file(self, file: OpenFile, target: str) -> FileEntry:
        """Make ``target`` hold what ``file`` holds now. An entry with ``how=LINK`` keeps the descriptor; else it is
        closed.

        Raises
        ------
        OSError, SnapshotError
            It could not; whatever was made is removed by the caller.
        """

    def finish(self) -> None:
        """All files were captured: write out what is still held back."""

    def leases(self) -> dict[str, int]:
        """Leases taken so far: relative path → descriptor."""


def capture_tree(path: str, target: str, strategy: FileStrategy, config: Config) -> Captured:
    """Capture everything under ``path`` into the new directory ``target`` with one strategy for files."""
    manifest = Manifest()
    captured = Captured(manifest)
    at = target
    try:
        os.mkdir(target, 0o700)
        for item in walk(path, config):
            at = item.shown
            copy = f"{target}/{item.path}"
            if item.link:
                captured.followed.append(item.link)
            if item.kind == stat.S_IFREG:
                manifest.files.append(_capture_file(item, copy, strategy))
            elif item.kind == stat.S_IFDIR:
                os.mkdir(copy, 0o700)
                manifest.dirs.append(Directory.of(item.path, os.lstat(item.full)))
            else:
                os.symlink(item.text, copy)
                manifest.links.append(Link(item.path, item.text))
        at = target
        strategy.finish()
        captured.leases = strategy.leases()
        return captured
    except BaseException as error:
        with contextlib.suppress(OSError):  # What it would write out is removed.
            strategy.finish()
        captured.leases = strategy.leases()
        captured.drop(target)
        if isinstance(error, OSError) and not isinstance(error, SnapshotError):
            raise failure(at, error) from error
        raise


def _capture_file(item: Item, target: str, strategy: FileStrategy) -> FileEntry:
    fd = os.open(item.full, _OPEN)
    kept = False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise refused(item.shown, status.st_mode)
        if not status.st_size and os.pread(fd, 1, 0) and not os.fstat(fd).st_size:
            raise SnapshotError(
                f"Cannot capture {item.shown}: it has content and no size, as files of the kernel do",
                where=item.shown,
                hint="Copy its content into a file, and save that",
            )  # fmt: skip
        entry = strategy.capture_file(OpenFile(fd, item.full, item.path, status), target)
        kept = entry.how == LINK
        return entry
    finally:
        if not kept:
            os.close(fd)
