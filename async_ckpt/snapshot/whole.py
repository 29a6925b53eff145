"""The whole of what is saved, as it was at one moment.

What the walk finds is captured one after the other. Then everything is looked at again (``stillness`` says how): where
nothing moved since it was captured, and no name came or went, what was captured is what was there at the moment in
which that second look began. What did move is captured again, a few times; then the capture is refused, by name.

A file that only grows (a log) does not stop a capture: it is taken up to its length at one moment, which is found by
looking at those that move, and at nothing else, until none of them did for one turn; the rest is looked at after that.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass

from .. import filesystems
from ..config import Config
from ..errors import SnapshotError
from ..manifest import LINK, PACKED, Directory, Link, Manifest
from ..undisturbed import go_on
from .base import Captured, FileStrategy
from .links import failure, refused
from .stillness import OPEN, Now, OpenFile, Seen
from .walk import Item, walk

#: Turns in which only what moves is looked at, microseconds each.
_TURNS = 200
#: First and longest pause before what moved is captured again, in seconds.
_PAUSES_S = (0.001, 0.1)
#: After so many files a capture may be ended.
_BETWEEN = 256
#: Originals that are kept open for the second look, at most.
_MAX_OPEN = 1000


@dataclass
class _Folder:
    """A captured folder: where it stands, what it was before it was listed, and whether a new time tells of every name
    that comes or goes.
    """

    item: Item
    status: os.stat_result
    sure: bool

    def moved(self) -> bool:
        now = os.stat(self.item.full) if not self.item.path else os.lstat(self.item.full)
        return (now.st_ino, now.st_mtime_ns) != (self.status.st_ino, self.status.st_mtime_ns)


def capture_tree(path: str, target: str, strategy: FileStrategy, config: Config) -> Captured:
    """Capture everything under ``path`` into the new directory ``target`` with one strategy for files.

    Raises
    ------
    SnapshotError
        Something cannot be captured, or does not stand still; ``target`` is removed.
    """
    tree = _Tree(path, target, strategy, config)
    captured = Captured(Manifest())
    try:
        os.mkdir(target, 0o700)
        tree.capture()
        strategy.finish()
        captured.manifest, captured.followed = tree.manifest(), tree.followed()
        captured.leases = strategy.leases()
        return captured
    except BaseException as error:
        with contextlib.suppress(OSError):  # What it would write out is removed.
            strategy.finish()
        captured.leases = strategy.leases()
        captured.drop(target)
        if isinstance(error, OSError) and not isinstance(error, SnapshotError):
            raise failure(tree.at, error) from error
        raise
    finally:
        tree.close()


class _Tree:
    def __init__(self, path: str, target: str, strategy: FileStrategy, config: Config) -> None:
        self._path, self._target, self._strategy, self._config = path, target, strategy, config
        self._items: list[Item] = []
        self._files: dict[str, Seen] = {}
        self._folders: dict[str, _Folder] = {}
        self._links: dict[str, str] = {}
        self._kinds: dict[int, str] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._may_open = _MAX_OPEN if soft == resource.RLIM_INFINITY else min(_MAX_OPEN, soft // 3)
        #: Whether something was written to, or came, while it was captured. Where files only vanish, all of it may be
        #: on its way out, and half of it would be taken for the whole.
        self._alive = False
        #: What is dealt with right now, for an error.
        self.at = path

    # -- the result ------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        made = Manifest()
        for item in self._items:
            if item.kind == stat.S_IFREG:
                made.files.append(self._files[item.path].entry)
            elif item.kind == stat.S_IFDIR:
                made.dirs.append(Directory.of(item.path, self._folders[item.path].status))
            else:
                made.links.append(Link(item.path, item.text))
        return made

    def followed(self) -> list[str]:
        return [item.link for item in self._items if item.link]

    def close(self) -> None:
        """Let go of all originals but those that a lease holds."""
        for seen in self._files.values():
            if seen.entry.how != LINK:
                seen.close()

    # -- capturing -------------------------------------------------------------------------------------------------

    def capture(self) -> None:
        """Capture, and go on until it is all of one moment."""
        deadline, pause = time.monotonic() + self._config.capture_timeout_s, _PAUSES_S[0]
        vanished: SnapshotError | None = None
        moved, complete = [self._path], False
        for turn in range(1 + self._config.capture_tries):
            go_on()
            if turn and time.monotonic() > deadline:
                break
            if turn:  # What others write to says nothing when it is done.
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _PAUSES_S[1])
            try:
                if not complete or self._names_moved():
                    complete = False
                    vanished = self._list() or vanished
                    complete = True
                moved = self._settle()
                if not moved and vanished is not None and self._files and not self._alive:
                    time.sleep(self._config.capture_vanished_s)
                    moved = self._settle()
            except FileNotFoundError as error:
                if not os.path.exists(self._path):
                    raise
                # Something was taken away while it was captured: look again what there is.
                vanished = error if isinstance(error, SnapshotError) else failure(self.at, error)
                moved, complete = [self.at], False
                continue
            if not moved:
                break
        if vanished is not None and (moved or not self._files):
            raise vanished
        if moved:
            raise restless(self._path, moved)

    def _list(self) -> SnapshotError | None:
        """Walk, and capture what is new or has changed since the last time. Returns the error for what has vanished."""
        before = {item.path: item for item in self._items}
        again, items = bool(before), list[Item]()
        try:
            if os.path.isdir(self._path):
                self._folders[""] = self._folder(Item("", self._path, stat.S_IFDIR))
            for item in walk(self._path, self._config):
                if not len(items) % _BETWEEN:
                    go_on()
                self.at = item.shown
                known = before.get(item.path)
                if known is not None and known != item:
                    inside = f"{item.path}/"  # Of a folder that is none any more, or another one.
                    old = [path for path in before if path == item.path or path.startswith(inside)]
                    self._remove([before.pop(path) for path in old])
                self._take(item, new=known != item)
                self._alive |= again and known is None
                before.pop(item.path, None)
                items.append(item)
        finally:
            # Where it ends early, what was captured and is not in the new list yet stays in it.
            self._items = items + list(before.values())
        self._remove(before.values())
        self._items = items
        gone = next((item for item in before.values() if item.kind == stat.S_IFREG), None)
        return failure(gone.shown, FileNotFoundError()) if gone is not None else None

    def _take(self, item: Item, *, new: bool) -> None:
        target = f"{self._target}/{item.path}"
        if item.kind == stat.S_IFREG:
            seen = self._files.get(item.path)
            if seen is not None and not new and os.lstat(item.full).st_ino != seen.facts.ino:
                self._forget(item.path)  # Another file has taken its name.
                seen = None
            if seen is None:
                self._capture_file(item)
        elif item.kind == stat.S_IFDIR:
            folder = self._folder(item)
            if new:
                os.mkdir(target, 0o700)
            self._folders[item.path] = folder
        elif new:
            os.symlink(item.text, target)

    def _folder(self, item: Item) -> _Folder:
        kind, looked_ns = filesystems.kind_at(item.full), time.time_ns()
        status = os.lstat(item.full) if item.path else os.stat(item.full)
        return _Folder(item, status, filesystems.leases_hold(kind) and filesystems.is_settled(kind, status, looked_ns))

    def _capture_file(self, item: Item) -> None:
        fd, kept = os.open(item.full, OPEN), False
        try:
            file, target = OpenFile(fd, item.full, item.path), f"{self._target}/{item.path}"
            status = file.status
            if not stat.S_ISREG(status.st_mode):
                raise refused(item.shown, status.st_mode)
            if not status.st_size and os.pread(fd, 1, 0) and not os.fstat(fd).st_size:
                raise SnapshotError(
                    f"Cannot capture {item.shown}: it has content and no size, as files of the kernel do",
                    where=item.shown,
                    hint="Copy its content into a file, and save that",
                )  # fmt: skip
            # For whether this machine's kernel knows all of it; who links or copies it asks more closely.
            kind = self._kinds.get(status.st_dev)
            if kind is None:
                self._kinds[status.st_dev] = kind = file.on()
            file.is_local = filesystems.is_local(kind)
            entry = self._strategy.capture_file(file, target)
            file.kind = file.kind or kind
            self._files[item.path] = seen = Seen(item, file, entry, target)
            kept = entry.how == LINK or self._may_open > 0
            if entry.how != LINK:
                self._may_open -= kept
                seen.fd = fd if kept else -1
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(f"{self._target}/{item.path}")
            raise
        finally:
            if not kept:
                os.close(fd)

    def _remove(self, items: Iterable[Item]) -> None:
        """Remove what was captured under these names, what is in a folder before the folder."""
        for item in sorted(items, key=lambda item: item.path, reverse=True):
            target = f"{self._target}/{item.path}"
            if item.kind == stat.S_IFREG:
                self._forget(item.path)
            elif item.kind == stat.S_IFDIR:
                del self._folders[item.path]
                with contextlib.suppress(OSError):  # Not empty: something in it is removed after it, or not at all.
                    os.rmdir(target)
            else:
                os.unlink(target)

    def _forget(self, path: str) -> None:
        seen = self._files.pop(path, None)
        if seen is None:  # It vanished when it was to be captured again.
            return
        self._strategy.forget(path)
        if seen.fd >= 0 and seen.entry.how != LINK:
            self._may_open += 1
        seen.close()
        if seen.entry.how != PACKED:
            os.unlink(seen.target)

    # -- looking again ---------------------------------------------------------------------------------------------

    def _settle(self) -> list[str]:
        """Look at everything again, and capture again what moved. Returns what cannot be had of one moment now."""
        moving = self._moved(self._files.values())
        if moving is None or self._names_moved():
            return [self.at]
        for _ in range(_TURNS):
            if not moving:
                return []
            for seen in moving:
                self._capture_again(seen)
            self._alive = True
            moving = [self._files[seen.item.path] for seen in moving]
            if not all(seen.has_facts() for seen in moving):
                continue
            # The moment: none of those that move has moved since it was captured. The others must not have, until now.
            paths = {seen.item.path for seen in moving}
            more = self._moved(seen for path, seen in self._files.items() if path not in paths)
            if more is None or self._names_moved():
                return [self.at]
            if more:
                moving += more
                continue
            return [seen.item.shown for seen in moving if seen.look(self._strategy.pack) is Now.CHANGED]
        return [seen.item.shown for seen in moving]

    def _moved(self, files: Iterable[Seen]) -> list[Seen] | None:
        pack = self._strategy.pack
        moved = []
        for number, seen in enumerate(files):
            if not number % _BETWEEN:
                go_on()
            try:
                if seen.look(pack) is not Now.SAME:
                    moved.append(seen)
            except FileNotFoundError:
                self.at = seen.item.shown
                return None
        return moved

    def _capture_again(self, seen: Seen) -> None:
        item = seen.item
        self.at = item.shown
        grown = seen.entry.how not in (LINK, PACKED)
        if grown:
            fd = os.open(item.full, OPEN)
            try:
                file = OpenFile(fd, item.full, item.path)
                grown = file.status.st_ino == seen.facts.ino and file.status.st_size > seen.entry.size
                if grown:
                    seen.extend(file)
            finally:
                os.close(fd)
        if not grown:
            self._forget(item.path)
            self._capture_file(item)

    def _names_moved(self) -> bool:
        """Whether a name came or went, or is another file's now."""
        sure = True
        for folder in self._folders.values():
            self.at = folder.item.shown
            if folder.moved():
                return True
            sure = sure and folder.sure
        for item in self._items:
            if item.link and os.path.realpath(item.link) != item.full:
                return True
        return not sure and self._names() != [(item, self._inode(item)) for item in self._items]

    def _names(self) -> list[tuple[Item, int]]:
        return [(item, os.lstat(item.full).st_ino) for item in walk(self._path, self._config)]

    def _inode(self, item: Item) -> int:
        if item.kind == stat.S_IFREG:
            return self._files[item.path].facts.ino
        return self._folders[item.path].status.st_ino if item.kind == stat.S_IFDIR else os.lstat(item.full).st_ino


def restless(path: str, moved: list[str]) -> SnapshotError:
    """The error for what never stands still."""
    more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
    return SnapshotError(
        f"Cannot capture {path} as it was at one moment: something writes to {moved[0]}{more} all the time",
        where=moved[0],
        hint="Save when it is complete: let the writer pause, or have it write to a temporary name and rename; a "
        "database has a backup function. METAFLOW_ASYNC_CKPT_CAPTURE_TRIES says how often it is tried",
    )
