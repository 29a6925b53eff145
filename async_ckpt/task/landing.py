"""What a load does with its destination.

What is loaded first arrives in a new directory inside of the destination. From there it is renamed into place, entry by
entry. If the load fails, what had to make room is put back: the destination is as it was.

What stands there already and is no part of the checkpoint stays, and the log names it; a clean load takes it away.
Symbolic links that lead out of the checkpoint are not made: a trainer could write anywhere through them.

A load has its own directory, ``.async_ckpt-loading-<random>/``. In it, ``content/`` is what arrives, ``replaced/`` what
had to make room, and a tar lies beside them. Saves and watches ignore such a directory. The next load into the same
destination removes one that a killed load has left.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..capture.walk import ANNEX_PREFIX
from ..config import Config, is_spools_name
from ..errors import CheckpointError, SnapshotError, UsageError, os_hint, os_reason
from ..manifest import follow
from ..system import forks
from ..system.files import given_path, remove_tree, try_lock
from ..system.mounts import mounts_below

log = logging.getLogger(__name__)

STAGING_PREFIX = f"{ANNEX_PREFIX}loading-"
_CONTENT, _REPLACED = "content", "replaced"

#: How often a load tries to make its directory.
_TRIES = 10

#: How many names a line tells; of the others it says how many there are.
_NAMED = 3
#: For how many destinations the log says what stays in them.
_MAX_SAID = 1000

_said: set[str] = set()


@dataclass(frozen=True)
class Arrival:
    """How a load treats its destination.

    Parameters
    ----------
    clean : bool
        Whether what is there already, and is no part of the checkpoint, is taken away.
    needed : tuple of str
        Directories that a clean load must not take away: the spool, a local store.
    tell_stale : bool
        Whether the log names what stays.
    files : collection of str, optional
        Of the checkpoint only these paths arrive; the rest of what is there may have come before. Default: all of it.
    """

    clean: bool = False
    needed: tuple[str, ...] = ()
    tell_stale: bool = True
    files: Collection[str] | None = None


def check_clean(destination: str, needed: tuple[str, ...] = ()) -> None:
    """See that a clean load into ``destination`` takes away nothing that must stay.

    Raises
    ------
    UsageError
        The destination is, or holds, the working directory, the home directory, or a directory that is ``needed``; or
        another file system is mounted somewhere in it.
    """
    real = os.path.realpath(destination)
    kept = [("spool, or the store,", path) for path in needed]
    with contextlib.suppress(FileNotFoundError):  # It was removed.
        kept.append(("working directory", os.getcwd()))
    with contextlib.suppress(RuntimeError):  # A user without a name, as in some pods, may have none.
        kept.append(("home directory", str(Path.home())))
    lost = [f"{what} {path}" for what, path in kept if f"{os.path.realpath(path)}/".startswith(f"{real.rstrip('/')}/")]
    lost += [f"file system that is mounted at {path}" for path in mounts_below(real)]
    if lost:
        raise UsageError(
            f"A clean load into {destination} would take away the {lost[0]}", hint="Load into a directory of its own"
        )


class Landing:
    """The new directory in which a load arrives, as a context manager; see the module's docstring.

    Raises
    ------
    SnapshotError
        It cannot be made, or its content cannot get into place.
    UsageError
        The destination cannot be cleaned.
    """

    def __init__(self, destination: str, arrival: Arrival) -> None:
        self._destination, self._arrival = given_path(destination), arrival
        #: The load's own directory.
        self._folder, self._lock = "", -1

    def __enter__(self) -> str:
        if self._arrival.clean:
            check_clean(self._destination, self._arrival.needed)
        try:
            os.makedirs(self._destination, exist_ok=True)
            self._remove_abandoned()
            self._make_folder()
            staging = os.path.join(self._folder, _CONTENT)
            os.mkdir(staging, 0o700)
        except OSError as error:
            raise self._failure(error) from error
        return staging

    def _make_folder(self) -> None:
        for _ in range(_TRIES):
            # Inside of it: surely the same file system, whatever is mounted there.
            self._folder = os.path.join(self._destination, f"{STAGING_PREFIX}{secrets.token_hex(4)}")
            os.mkdir(self._folder, 0o700)
            try:
                self._lock = _lock(self._folder)
            except FileNotFoundError:
                continue  # Another load took it for abandoned, as it was not locked yet.
            except OSError:
                return  # A file system without locks, where nothing is taken for abandoned.
            if self._lock >= 0:
                return
        raise FileNotFoundError(errno.ENOENT, "Something removes what is made there", self._folder)

    def _remove_abandoned(self) -> None:
        """Remove what loads have left that were killed."""
        for name in os.listdir(self._destination):
            if not name.startswith(STAGING_PREFIX) or name.endswith(_REPLACED):
                continue
            path = os.path.join(self._destination, name)
            with contextlib.suppress(OSError):  # It ends in this moment; or it is somebody else's.
                if (lock := _lock(path)) < 0:
                    continue
                try:
                    remove_tree(path)
                finally:
                    forks.close_lock(lock)
                log.info(f"Removed what a load that was killed has left in {self._destination}: {name}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                try:
                    self._put_in_place()
                except OSError as failed:
                    raise self._failure(failed) from failed
            elif isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, CheckpointError)):
                raise self._failure(error) from error
        finally:
            try:
                remove_tree(self._folder)
            except OSError as failed:
                log.warning(f"{self._folder}, in which a load arrived, cannot be removed: {os_reason(failed)}")
            if self._lock >= 0:
                forks.close_lock(self._lock)

    def _failure(self, error: OSError) -> SnapshotError:
        what = f"Cannot load into {self._destination}: {os_reason(error)}"
        hint = os_hint(error)
        if error.errno == errno.EXDEV:
            hint = "Another file system is mounted there: load into a directory that has none in it"
        elif error.errno == errno.EEXIST:
            hint = "What stands there is no directory: remove it, or name another path"
        # A rename has two paths, one of which is ours and tells nobody anything.
        paths = [path for path in (error.filename2, error.filename) if path and STAGING_PREFIX not in str(path)]
        return SnapshotError(what, where=paths[0] if paths else self._destination, hint=hint)

    def _put_in_place(self) -> None:
        stale: list[str] = []
        with _Exchange(self._folder) as exchange:
            if self._arrival.clean:
                for name in os.listdir(self._destination):
                    if not _is_ours(name):
                        exchange.take_away(os.path.join(self._destination, name))
            _move_into(os.path.join(self._folder, _CONTENT), self._destination, stale, exchange)
        if self._arrival.clean:
            return
        if stale and self._arrival.tell_stale and self._destination not in _said and len(_said) < _MAX_SAID:
            _said.add(self._destination)
            names = [os.path.relpath(path, self._destination) for path in sorted(stale)]
            log.info(
                f"In {self._destination} {_counted(names)} no part of the checkpoint that was loaded there. "
                "Nothing of that was touched. To have only the checkpoint there, load it with clean=True (in a shell: "
                "--clean)"
            )


def make_links(links: Mapping[str, str], staging: str, config: Config) -> None:
    """Make a checkpoint's symbolic links (path → text), but for those that lead out of it.

    They come last, so that nothing is made through one: neither a file nor another link's parent.
    """
    out = {path for path, text in links.items() if config.dangling_links != "keep" and _leads_out(path, text, links)}
    for path, text in links.items():
        place = os.path.join(staging, path)
        if path not in out:
            os.symlink(text, place)
        elif os.path.lexists(place):  # Whoever made this wants files to be written through it.
            raise FileExistsError(errno.EEXIST, "is a link that leads out, and a folder", path)
    if out:
        log.warning(
            f"Not made, as what is written through it would go elsewhere: of the checkpoint's symbolic links "
            f"{_counted([f'{path} -> {links[path]}' for path in sorted(out)])} leading out of it. "
            "METAFLOW_ASYNC_CKPT_DANGLING_LINKS=keep makes such links"
        )


def _leads_out(path: str, text: str, links: Mapping[str, str]) -> bool:
    # (The kernel refuses to make a link with an empty text.)
    return text.startswith("/") or follow(path, links) is None


def _counted(names: list[str]) -> str:
    shown, more = ", ".join(names[:_NAMED]), len(names) - _NAMED
    if more > 0:
        return f"{shown} and {more} more are"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _is_ours(name: str) -> bool:
    """Whether this is a directory of another load, of snapshots, of spools, or of the file system itself."""
    return name.startswith(ANNEX_PREFIX) or is_spools_name(name) or name == "lost+found"


def _lock(folder: str) -> int:
    """A descriptor that holds a load's directory as long as that runs; -1: somebody else does. ``OSError`` where that
    cannot be told, as on NFS: nothing is taken for abandoned there.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    is_locked = False
    try:
        is_locked = try_lock(fd)
    finally:
        if not is_locked:
            os.close(fd)
    if not is_locked:
        return -1
    forks.keep_lock_from_children(fd)
    return fd


class _Exchange:
    """Renames that are all taken back where one of them fails, as a context manager.

    Parameters
    ----------
    folder : str
        The load's own directory, in which what has to make room is put, to be removed with it.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._aside = folder, os.path.join(folder, _REPLACED)
        #: (where it was, where it is): noted before each is made, so that none is missing here.
        self._done: list[tuple[str, str]] = []

    def __enter__(self) -> _Exchange:
        os.mkdir(self._aside, 0o700)
        return self

    def move(self, old: str, new: str) -> None:
        """Rename something to a name that is free, or is a file's that was ``kept``."""
        self._done.append((old, new))
        try:
            os.rename(old, new)
        except OSError:
            self._done.pop()
            raise

    def take_away(self, path: str) -> None:
        """Make room."""
        self.move(path, os.path.join(self._aside, str(len(self._done))))

    def keep(self, path: str) -> None:
        """Let a file be replaced: by one rename, so that there always is one, where it can have a second name."""
        kept = os.path.join(self._aside, str(len(self._done)))
        try:
            os.link(path, kept, follow_symlinks=False)
        except OSError:
            self.take_away(path)
        else:
            self._done.append((path, kept))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        lost = []
        for was, now in reversed(self._done) if kind is not None else ():
            try:
                if not _is_one_file(now, was):  # It was kept, and never replaced.
                    os.rename(now, was)
            except FileNotFoundError:
                continue  # It was about to be moved when something else ended the load.
            except OSError as failed:
                lost.append(f"{was} ({os_reason(failed)})")
        if lost:
            kept = f"{self._folder}-{_REPLACED}"  # Not removed with the load's directory, nor by another load.
            with contextlib.suppress(OSError):
                os.rename(self._aside, kept)
            log.warning(f"A load has failed, and what was there before is in {kept}: {'; '.join(lost[:_NAMED])}")


def _move_into(source: str, destination: str, stale: list[str], exchange: _Exchange) -> None:
    """``stale`` gets the paths of what is in ``destination`` and not in ``source``."""
    pending = [(source, destination)]
    while pending:
        source, destination = pending.pop()
        names = os.listdir(source)
        there = set(os.listdir(destination))
        stale += [os.path.join(destination, name) for name in there.difference(names) if not _is_ours(name)]
        for name in names:
            old, new = os.path.join(source, name), os.path.join(destination, name)
            is_folder = _is_folder(old)
            if name not in there:
                pass
            elif is_folder and _is_folder(new):
                pending.append((old, new))
                continue
            elif is_folder or _is_folder(new):
                exchange.take_away(new)
            else:
                exchange.keep(new)
            exchange.move(old, new)


def _is_one_file(path: str, other: str) -> bool:
    return os.path.lexists(other) and os.path.samestat(os.lstat(path), os.lstat(other))


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
