"""Where a symbolic link below what is saved leads, and what becomes of it.

A link is worth nothing on another machine if what it points to stays behind. So a link whose target is saved as well
stays a link, and is made relative if it is absolute. A link that leads out of what is saved is replaced by what it
points to; if that is a folder, it is walked like any other. ``Root`` says which folders of the disk are in the
snapshot, and where.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import os_hint, os_reason
from .item import Item, refused, refused_link


@dataclass(frozen=True)
class Root:
    """A folder of the disk that the snapshot holds with all that is in it.

    Parameters
    ----------
    folder : str
        Where it stands.
    path : str
        Its path in the snapshot; empty for what is saved itself, else with a ``/`` at its end.
    """

    folder: str
    path: str

    @cached_property
    def real(self) -> str:
        """Where it stands, free of links. Only asked for where there is a link: it costs a call for each folder."""
        return os.path.realpath(self.folder)

    def place(self, real: str) -> str | None:
        """The path in the snapshot of what stands at ``real``; None: it is not below this folder."""
        if real == self.real:
            return self.path.rstrip("/")
        above = self.real.rstrip("/") + "/"
        return self.path + real[len(above) :] if real.startswith(above) else None


def item_of_link(link: str, path: str, roots: Sequence[Root], *, keep_dangling: bool) -> Item:
    """What becomes of one link: a link, or the file or the folder that it leads to.

    Parameters
    ----------
    link : str
        Where it stands.
    path : str
        Its path in the snapshot.
    roots : sequence of Root
        What the snapshot holds, as far as it leads here; the last one holds the link.
    keep_dangling : bool
        Keep a link that leads nowhere as it stands, instead of refusing it.

    Raises
    ------
    SnapshotError
        It leads nowhere, round in a circle, to what cannot be saved, or up to a folder above itself.
    OSError
        It cannot be followed.
    """
    try:
        text = os.readlink(link)
    except OSError as error:
        if error.errno == errno.EINVAL:  # Something else has taken its place since it was listed.
            raise FileNotFoundError(errno.ENOENT, "is no symbolic link any more", link) from None
        raise
    folder = os.path.join(roots[-1].real, os.path.dirname(path)[len(roots[-1].path) :])
    try:
        # Asked of the kernel: realpath() goes on from a file as if it were a folder, in "file/../other".
        mode = os.stat(link).st_mode
        real = os.path.realpath(os.path.join(folder, text), strict=True)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise refused_link(link, text, os_reason(error), os_hint(error)) from error
        if keep_dangling:
            return Item(path, link, stat.S_IFLNK, text)
        where = "round in a circle" if error.errno == errno.ELOOP else "nowhere"
        raise refused_link(
            link, text, f"it leads {where}",
            "Remove the link, or keep it as it is with @checkpoint(dangling_links='keep')",
        ) from None  # fmt: skip
    inside = _place(_one_hop(folder, text), roots)
    if inside is None:
        inside = _place(real, roots)
    if inside is not None:
        depth = path.count("/") - roots[-1].path.count("/")
        relative = text if _stays_inside(text, depth) else os.path.relpath(inside or ".", os.path.dirname(path) or ".")
        return Item(path, link, stat.S_IFLNK, relative)
    if stat.S_ISREG(mode):
        return Item(path, real, stat.S_IFREG, link=link)
    if not stat.S_ISDIR(mode):
        raise refused(link, mode, text)
    for root in roots:
        if root.real.startswith(real.rstrip("/") + "/"):
            raise refused_link(
                link, text, "it leads up to a folder that holds what is saved",
                "Remove the link, or point it to what is to be saved with it",
            )  # fmt: skip
    return Item(path, real, stat.S_IFDIR, link=link)


def _one_hop(folder: str, text: str) -> str:
    """Where a link leads by itself, before what stands there is followed as well."""
    target = os.path.join(folder, text)
    name = os.path.basename(target)
    if name in ("", ".", ".."):
        return os.path.realpath(target)
    return os.path.join(os.path.realpath(os.path.dirname(target)), name)


def _place(real: str, roots: Sequence[Root]) -> str | None:
    return next((place for root in reversed(roots) if (place := root.place(real)) is not None), None)


def _stays_inside(text: str, depth: int) -> bool:
    """Whether a link's text, as it stands, means the same wherever the snapshot is restored."""
    if text.startswith("/"):
        return False
    parts = [part for part in text.split("/") if part not in ("", ".")]
    up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    return up <= depth and ".." not in parts[up:]
