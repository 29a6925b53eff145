"""Where a load arrives: in a new directory inside of the destination first, which is then renamed into place, entry by
entry. So a load that fails leaves the destination as it was.

What stands there and is no part of the checkpoint stays, and it is said; or, where a clean destination is wanted, is
taken away. Symbolic links that lead out of the checkpoint are not made: a trainer would write through them, anywhere.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .config import Config, is_spools_name
from .errors import CheckpointError, SnapshotError, UsageError, os_hint, os_reason
from .files import given_path, remove_tree
from .manifest import follow
from .printable import to_stderr
from .snapshot.walk import ANNEX_PREFIX

_STAGING_PREFIX = f"{ANNEX_PREFIX}loading-"

#: So many names are said; the rest is counted.
_NAMED = 3
#: Of more destinations it is not said what stays in them.
_MAX_SAID = 1000

_said: set[str] = set()


@dataclass(frozen=True)
class Arrival:
    """How a load treats its destination.

    Parameters
    ----------
    clean : bool
        What is there already, and is no part of the checkpoint, goes; else it stays.
    say : callable
        Gets lines for people.
    needed : tuple of str
        Directories that a clean load must not take away: the spool, a local store.
    """

    clean: bool = False
    say: Callable[[str], None] = to_stderr
    needed: tuple[str, ...] = ()


def check_clean(destination: str, needed: tuple[str, ...] = ()) -> None:
    """See that nothing is lost that nobody means, where all in ``destination`` is replaced.

    Raises
    ------
    UsageError
        It is, or holds, the working directory, the home directory, or a directory that is ``needed``.
    """
    real = os.path.realpath(destination)
    for what, path in [("working directory", os.getcwd()), ("home directory", str(Path.home()))] + [
        ("spool, or the store,", path) for path in needed
    ]:
        if f"{os.path.realpath(path)}/".startswith(f"{real.rstrip('/')}/"):
            raise UsageError(
                f"A clean load into {destination} would take away the {what} {path}",
                hint="Load into a directory of its own",
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
        self._staging = os.path.join(self._destination, f"{_STAGING_PREFIX}{secrets.token_hex(4)}")

    def __enter__(self) -> str:
        if self._arrival.clean:
            check_clean(self._destination, self._arrival.needed)
        try:
            os.makedirs(self._destination, exist_ok=True)
            # Inside of it: surely the same file system, whatever is mounted there.
            os.mkdir(self._staging, 0o700)
        except OSError as error:
            raise self._failure(error) from error
        return self._staging

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
            remove_tree(self._staging)

    def _failure(self, error: OSError) -> SnapshotError:
        what = f"Cannot load into {self._destination}: {os_reason(error)}"
        return SnapshotError(what, where=error.filename or self._destination, hint=os_hint(error))

    def _put_in_place(self) -> None:
        if self._arrival.clean:
            _replace(self._staging, self._destination)
            return
        stale: list[str] = []
        _move_into(self._staging, self._destination, stale)
        if stale and self._destination not in _said and len(_said) < _MAX_SAID:
            _said.add(self._destination)
            names = [os.path.relpath(path, self._destination) for path in sorted(stale)]
            self._arrival.say(
                f"In {self._destination} {_counted(names)} no part of the checkpoint that was loaded there, and left "
                "as it was. A clean load (clean=True, --clean) takes away what is not"
            )


def make_links(links: Mapping[str, str], staging: str, config: Config, say: Callable[[str], None]) -> None:
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
        say(
            f"Not made, as what is written through it would go elsewhere: of the checkpoint's symbolic links "
            f"{_counted([f'{path} -> {links[path]}' for path in sorted(out)])} leading out of it. "
            "METAFLOW_ASYNC_CKPT_DANGLING_LINKS=keep makes such links"
        )


def _leads_out(path: str, text: str, links: Mapping[str, str]) -> bool:
    # What comes after an empty text the kernel refuses.
    return text.startswith("/") or follow(path, links) is None


def _counted(names: list[str]) -> str:
    shown, more = ", ".join(names[:_NAMED]), len(names) - _NAMED
    if more > 0:
        return f"{shown} and {more} more are"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _is_ours(name: str) -> bool:
    """Whether this is a directory of another load, of snapshots, or of spools."""
    return name.startswith(ANNEX_PREFIX) or is_spools_name(name)


def _replace(staging: str, destination: str) -> None:
    """Put what was loaded into the place of all that is there; of nothing, if that fails on the way."""
    aside = f"{staging}-replaced"
    os.mkdir(aside, 0o700)
    done: list[tuple[str, str]] = []

    def move(folder: str, names: list[str], target: str) -> None:
        for name in names:
            pair = os.path.join(folder, name), os.path.join(target, name)
            os.rename(*pair)
            done.append(pair)

    try:
        move(destination, [name for name in os.listdir(destination) if not _is_ours(name)], aside)
        move(staging, os.listdir(staging), destination)
    except BaseException:
        for old, new in reversed(done):
            os.rename(new, old)
        os.rmdir(aside)
        raise
    remove_tree(aside)


def _move_into(source: str, destination: str, stale: list[str]) -> None:
    """``stale`` gets the paths of what is in ``destination`` and not in ``source``."""
    pending = [(source, destination)]
    while pending:
        source, destination = pending.pop()
        names = os.listdir(source)
        left = set(os.listdir(destination)).difference(names)
        stale += [os.path.join(destination, name) for name in left if not _is_ours(name)]
        for name in names:
            old, new = os.path.join(source, name), os.path.join(destination, name)
            is_folder = os.path.isdir(old) and not os.path.islink(old)
            if is_folder and os.path.isdir(new) and not os.path.islink(new):
                pending.append((old, new))
                continue
            if os.path.lexists(new) and (is_folder or os.path.isdir(new)) and not os.path.islink(new):
                remove_tree(new) if os.path.isdir(new) else os.unlink(new)
            elif is_folder and os.path.islink(new):
                os.unlink(new)
            os.rename(old, new)
