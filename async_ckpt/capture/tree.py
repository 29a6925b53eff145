"""The whole of what is saved, as it was at one moment.

First all that the walk finds is captured, one after the other. Then all of it is looked at again (``open_file`` says
how). If no file has changed since it was captured, and no name has come or gone, then what was captured is what was
there when this second look began: that is the moment. What has changed is captured again, a few times. After that the
capture is refused, and the error names what changes.

A file that only grows, such as a log, does not stop a capture. It is taken up to its length at one moment. To find that
moment, only the files that change are looked at, turn by turn, until none of them has changed for one turn. Then the
others are looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ..config import CAPTURE_FIRST_PAUSE_S, CAPTURE_LONGEST_PAUSE_S, Config
from ..errors import SnapshotError
from ..manifest import LINK, PACKED, Directory, Manifest, Symlink
from ..system import filesystems
from ..system.undisturbed import go_on
from .item import Item, failure, refused
from .open_file import OPEN, Change, OpenFile
from .snapshot import Snapshot
from .strategy import Strategy
from .walk import walk

#: Errors for a name that is gone, or is no longer the file or the folder that it was.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

#: How often only the files that change are looked at. Each turn takes microseconds.
_TURNS = 200
#: After how many files a capture can be interrupted.
_BETWEEN = 256
#: How many originals are kept open for the second look at most.
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


def capture_tree(path: str, target: str, strategy: Strategy, config: Config) -> Snapshot:
    """Capture everything under ``path`` into the new directory ``target`` with one strategy for files.

    Raises
    ------
    SnapshotError
        Something cannot be captured, or does not stand still; ``target`` is removed.
    """
    tree = _Tree(path, target, strategy, config)
    captured = Snapshot(Manifest(), strategy.leases)
    try:
        os.mkdir(target, 0o700)
        tree.capture()
        strategy.pack.close()
        captured.manifest, captured.followed = tree.manifest(), tree.followed()
        return captured
    except BaseException as error:
        with contextlib.suppress(OSError):  # What it would write out is removed.
            strategy.pack.close()
        captured.drop(target)
        if isinstance(error, OSError) and not isinstance(error, SnapshotError):
            raise failure(tree.at.shown, error) from error
        raise
    finally:
        tree.close()


class _Tree:
    def __init__(self, path: str, target: str, strategy: Strategy, config: Config) -> None:
        self._path, self._target, self._strategy, self._config = path, target, strategy, config
        self._items: list[Item] = []
        self._files: dict[str, OpenFile] = {}
        self._folders: dict[str, _Folder] = {}
        #: Kinds of file systems by device, and whether they are local.
        self._kinds: dict[int, tuple[str, bool]] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_open = _MAX_OPEN if soft == resource.RLIM_INFINITY else min(_MAX_OPEN, soft // 3)
        #: Whether something was written to, or came, while it was captured. Where files only vanish, somebody may be
        #: removing all of it: then half of it would be taken for the whole.
        self._alive = False
        #: What is captured or looked at right now, for an error.
        self.at = Item("", path, stat.S_IFDIR)

    # -- the result ------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        made = Manifest()
        for item in self._items:
            if item.kind == stat.S_IFREG:
                made.files.append(self._files[item.path].entry)
            elif item.kind == stat.S_IFDIR:
                made.dirs.append(Directory.of(item.path, self._folders[item.path].status))
            else:
                made.links.append(Symlink(item.path, item.text))
        return made

    def followed(self) -> list[str]:
        return [item.link for item in self._items if item.link]

    def close(self) -> None:
        """Let go of all originals but those that a lease holds."""
        for file in self._files.values():
            if file.entry.how != LINK:
                file.close()

    # -- capturing -------------------------------------------------------------------------------------------------

    def capture(self) -> None:
        """Capture, and go on until it is all of one moment."""
        deadline, pause = time.monotonic() + self._config.capture_timeout_s, CAPTURE_FIRST_PAUSE_S
        vanished: SnapshotError | None = None
        moved, complete = [self._path], False
        for turn in range(1 + self._config.capture_tries):
            go_on()
            if turn and time.monotonic() > deadline:
                break
            if turn:  # Nobody tells when a writer is done.
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, CAPTURE_LONGEST_PAUSE_S)
            try:
                if not complete or self._names_moved():
                    vanished = self._list() or vanished
                    complete = True
                moved = self._look_again()
                if not moved and vanished is not None and self._files and not self._alive:
                    time.sleep(self._config.capture_vanished_s)
                    moved = self._look_again()
            except (OSError, SnapshotError) as error:
                moved, complete = [self.at.shown], False
                if _is_out_of_descriptors(error) and self._spare_descriptors():
                    continue
                if not _has_gone(error) or not os.path.exists(self._path):
                    raise
                # Something was taken away while it was captured, or replaced: look again what there is.
                vanished = error if isinstance(error, SnapshotError) else failure(self.at.shown, error)
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
                self.at = item
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
        if item.kind == stat.S_IFREG:
            known = self._files.get(item.path)
            if known is not None and not new and os.lstat(item.full).st_ino != known.status.st_ino:
                self._forget(item.path)  # Another file has taken its name.
                known = None
            if known is None:
                self._capture_file(item)
        elif item.kind == stat.S_IFDIR:
            folder = self._folder(item)
            if new:
                os.mkdir(f"{self._target}/{item.path}", 0o700)
            self._folders[item.path] = folder
        elif new:
            os.symlink(item.text, f"{self._target}/{item.path}")

    def _folder(self, item: Item) -> _Folder:
        kind, looked_ns = filesystems.kind_of(item.full), time.time_ns()
        status = os.lstat(item.full) if item.path else os.stat(item.full)
        return _Folder(
            item, status, filesystems.leases_hold(kind) and filesystems.shows_next_write(kind, status, looked_ns)
        )

    def _capture_file(self, item: Item) -> None:
        file = OpenFile(os.open(item.full, OPEN), item, self._target)
        try:
            status = file.status
            if not stat.S_ISREG(status.st_mode):
                raise refused(item.shown, status.st_mode)
            if not status.st_size:
                _check_empty(file)
            # For whether this machine's kernel knows all of it; who links or copies it asks more closely.
            known = self._kinds.get(status.st_dev)
            if known is None:
                self._kinds[status.st_dev] = known = file.on(), filesystems.is_local(file.on())
            file.is_local = known[1]
            file.entry = self._strategy.capture_file(file)
            file.kind = file.kind or known[0]
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                os.unlink(file.target)
            raise
        self._files[item.path] = file
        if file.entry.how != LINK and len(self._files) > self._most_open:
            file.close()

    def _spare_descriptors(self) -> bool:
        """The trainer has most of those there may be: keep no original open. False: none was."""
        kept = [file for file in self._files.values() if file.fd >= 0 and file.entry.how != LINK]
        for file in kept:
            file.close()
        self._most_open = 0
        return bool(kept)

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
        file = self._files.pop(path, None)
        if file is None:  # It vanished when it was to be captured again.
            return
        self._strategy.forget(path)
        file.close()
        if file.entry.how != PACKED:
            os.unlink(file.target)

    # -- looking again ---------------------------------------------------------------------------------------------

    def _look_again(self) -> list[str]:
        """Look at everything again, and capture again what has changed. Returns what is not of one moment yet."""
        moving = self._moved(self._files.values())
        if moving is None or self._names_moved():
            return [self.at.shown]
        for _ in range(_TURNS):
            if not moving:
                return []
            for file in moving:
                self._capture_again(file)
            self._alive = True
            moving = [self._files[file.item.path] for file in moving]
            if not all(file.is_untouched() for file in moving):
                continue
            # The moment: no file that changes has changed since it was captured. Now the others must not have either.
            paths = {file.item.path for file in moving}
            more = self._moved(file for path, file in self._files.items() if path not in paths)
            if more is None or self._names_moved():
                return [self.at.shown]
            if more:
                moving += more
                continue
            return [file.item.shown for file in moving if file.change(self._strategy.pack) is Change.REWRITTEN]
        return [file.item.shown for file in moving]

    def _moved(self, files: Iterable[OpenFile]) -> list[OpenFile] | None:
        pack = self._strategy.pack
        moved = []
        for number, file in enumerate(files):
            if not number % _BETWEEN:
                go_on()
            try:
                if file.change(pack) is not Change.NONE:
                    moved.append(file)
            except OSError as error:
                if not _has_gone(error):
                    raise
                self.at = file.item
                return None
        return moved

    def _capture_again(self, file: OpenFile) -> None:
        self.at = file.item
        if file.entry.how in (LINK, PACKED) or not file.extend():
            self._forget(file.item.path)
            self._capture_file(file.item)

    def _names_moved(self) -> bool:
        """Whether a name came or went, or is another file's now."""
        for folder in self._folders.values():
            self.at = folder.item
            if folder.moved():
                return True
        for item in self._items:
            if item.link and os.path.realpath(item.link) != item.full:
                return True
        if all(folder.sure for folder in self._folders.values()):
            return False
        found = [(item, os.lstat(item.full).st_ino) for item in walk(self._path, self._config)]
        return found != [(item, self._inode(item)) for item in self._items]

    def _inode(self, item: Item) -> int:
        if item.kind == stat.S_IFREG:
            return self._files[item.path].status.st_ino
        return self._folders[item.path].status.st_ino if item.kind == stat.S_IFDIR else os.lstat(item.full).st_ino


def _has_gone(error: OSError | SnapshotError) -> bool:
    """Whether something is not what it was when it was listed: gone, a link now, or a file where a folder was."""
    return _number_of(error) in _GONE


def _is_out_of_descriptors(error: OSError | SnapshotError) -> bool:
    return _number_of(error) in (errno.EMFILE, errno.ENFILE)


def _number_of(error: OSError | SnapshotError) -> int | None:
    """What the kernel said; None: it was not the kernel."""
    cause = error.__cause__ if isinstance(error, SnapshotError) else error
    return cause.errno if isinstance(cause, OSError) else None


def _check_empty(file: OpenFile) -> None:
    """Refuse what has content and no size."""
    if os.pread(file.fd, 1, 0) and not os.fstat(file.fd).st_size:
        raise SnapshotError(
            f"Cannot capture {file.item.shown}: it has content and no size, as files of the kernel do",
            where=file.item.shown, hint="Copy its content into a file, and save that",
        )  # fmt: skip


def restless(path: str, moved: list[str]) -> SnapshotError:
    """The error for what never stands still."""
    more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
    return SnapshotError(
        f"Cannot capture {path} as it was at one moment: something writes to {moved[0]}{more} all the time",
        where=moved[0],
        hint="Save when it is complete: let the writer pause, or have it write to a temporary name and rename; a "
        "database has a backup function. METAFLOW_ASYNC_CKPT_CAPTURE_TRIES says how often it is tried",
    )
