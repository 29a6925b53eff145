"""The walk over a directory that is captured. All strategies use it.

Kept: relative paths, modes, modification times, empty directories, symbolic links to what is captured as well; other
links become what they point to (``symlinks.py``). Refused by name: FIFOs, sockets, devices, links that lead nowhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..config import Config, is_spools_name
from ..errors import MissingPathError, SnapshotError
from ..manifest import MAX_DEPTH
from ..system.filesystems import is_removed
from .item import Item, failure, refused
from .symlinks import Root, item_of_link

#: Our own folders beside what is saved on another file system than the spool; never part of a checkpoint.
ANNEX_PREFIX = ".async_ckpt-"


def walk(path: str, config: Config) -> Iterator[Item]:
    """Everything under ``path``, directories before what is in them; for a file, the file alone.

    Parameters
    ----------
    config : Config
        ``dangling_links`` and ``max_linked_folders``.

    Raises
    ------
    SnapshotError
        ``path`` is neither, or something under it cannot be captured.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        what = f"Cannot save {path}: it does not exist"
        raise MissingPathError(
            what, where=path, hint="Check the path; a relative one counts from the working directory"
        ) from error
    except OSError as error:
        raise failure(path, error) from error
    if stat.S_ISREG(mode):
        yield Item(os.path.basename(path), os.path.realpath(path), stat.S_IFREG)
        return
    if not stat.S_ISDIR(mode):
        raise refused(path, mode)
    yield from _walk_folder(path, config)


def _walk_folder(path: str, config: Config) -> Iterator[Item]:
    #: Folders that are still to be listed: its path in the snapshot, which ends with a / or is empty, and where it
    #: stands; and those that the snapshot holds and that lead there.
    pending: list[tuple[str, str, tuple[Root, ...]]] = [("", path, (Root(path, ""),))]
    linked, keep_dangling = 0, config.dangling_links == "keep"
    while pending:
        relative, folder, roots = pending.pop()
        if relative.count("/") >= MAX_DEPTH:
            raise SnapshotError(
                f"Cannot capture {path}: there are more than {MAX_DEPTH} folders inside each other in it", where=folder,
                hint="Save what is in it as one file (a tar), or make it flatter",
            )  # fmt: skip
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name, full = entry.name, entry.path
                    # The directory says what is what: no stat for each file.
                    if entry.is_file(follow_symlinks=False):
                        if is_removed(name, folder):
                            continue
                        yield Item(relative + name, full, stat.S_IFREG)
                    elif entry.is_symlink():
                        item = item_of_link(full, relative + name, roots, keep_dangling=keep_dangling)
                        if item.kind == stat.S_IFDIR:
                            linked += 1
                            _check_linked(linked, path, item.link, config)
                            inner = Root(item.full, f"{item.path}/")
                            pending.append((inner.path, item.full, (*roots, inner)))
                        yield item
                    elif not entry.is_dir(follow_symlinks=False):
                        raise refused(full, entry.stat(follow_symlinks=False).st_mode)
                    elif not name.startswith(ANNEX_PREFIX) and not is_spools_name(name):
                        pending.append((f"{relative}{name}/", full, roots))
                        yield Item(relative + name, full, stat.S_IFDIR)
        except OSError as error:
            raise failure(error.filename or folder, error) from error


def _check_linked(count: int, path: str, link: str, config: Config) -> None:
    """Links between folders can make a few of them into millions."""
    if count > config.max_linked_folders:
        raise SnapshotError(
            f"Cannot capture {path}: symbolic links in it lead to more than {config.max_linked_folders} folders",
            where=link, hint="Save what they point to by itself, or raise METAFLOW_ASYNC_CKPT_MAX_LINKED_FOLDERS",
        )  # fmt: skip
