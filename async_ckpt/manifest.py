"""What a snapshot holds: files with size, mode and digest, directories, symbolic links.

One JSON object in two places. In the spool it also says how each file was captured (for recovery); in the store it
lists the digests (for restores). Paths are relative, with ``/``; undecodable bytes travel as surrogates.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .errors import IntegrityError

FORMAT = "async_ckpt.manifest/1"

#: The bits of a file's mode that are kept. Not setuid and setgid: nothing that is loaded may run as another user.
PERMISSIONS = 0o777
#: A file has at most so many folders above it: to walk through more is not safe.
MAX_DEPTH = 300
_MOST = 1 << 63
#: Times in nanoseconds are below this, before 1970 and after: file systems have 64 bits for the seconds.
_MOST_NS = _MOST * 10**9
#: So many symbolic links are followed one after the other, as by the kernel.
MAX_HOPS = 40

#: How a file came into the snapshot. Only ``LINK`` shares its inode with the trainer's file.
COPY, LINK, PACKED = "copy", "link", "packed"


class FileEntry(NamedTuple):
    """One regular file.

    Parameters
    ----------
    path : str
        Relative path.
    size : int
        Bytes.
    mode : int
        Permission bits.
    how : str
        ``COPY`` (or a clone), ``LINK`` or ``PACKED``; only in the spool. Records of earlier versions may say "moved" or
        "reflink": such a file is the snapshot's own, like a copy.
    ino : int
        Its inode when it was captured. By it and the time, recovery sees whether a link that lost its lease was written
        to. Only in the spool.
    mtime_ns : int
        Modification time in nanoseconds; 0: not known.
    offset : int
        For ``PACKED``: where in the snapshot's pack its bytes begin; only in the spool.
    crc32 : list of int or None
        CRC-32 of every 16 MiB. Only in the store, and not for members of a tar.
    digests : tuple of str
        Digests of the same 16 MiB, by which a later checkpoint knows them again (``system/digests.py``); empty: there
        are none. Only in the store.
    etag : str
        Tells its object from one that takes its place; empty: not known. Only in the store.
    rank : int or None
        The rank that saved it, in a collective checkpoint. Only in the store.
    """

    path: str
    size: int
    mode: int
    how: str = COPY
    ino: int = 0
    mtime_ns: int = 0
    offset: int = 0
    crc32: list[int] | None = None
    rank: int | None = None
    digests: tuple[str, ...] = ()
    etag: str = ""

    def is_of(self, status: os.stat_result) -> bool:
        """Whether a file is the inode that was captured, and was not written to since, as far as its time tells."""
        return (status.st_ino, status.st_size, status.st_mtime_ns) == (self.ino, self.size, self.mtime_ns)


_FIELDS = frozenset(FileEntry._fields)


class Directory(NamedTuple):
    """One directory.

    Parameters
    ----------
    path : str
        Relative path.
    mode : int
        Permission bits.
    mtime_ns : int
        As of ``FileEntry``.
    """

    path: str
    mode: int
    mtime_ns: int = 0

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> Directory:
        return cls(path, stat.S_IMODE(status.st_mode), status.st_mtime_ns)


class Symlink(NamedTuple):
    """One symbolic link.

    Parameters
    ----------
    path : str
        Relative path.
    target : str
        What it says, as it stands.
    rank : int or None
        As of ``FileEntry``.
    """

    path: str
    target: str
    rank: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of one checkpoint, directories before what is in them."""

    files: list[FileEntry] = field(default_factory=list)
    dirs: list[Directory] = field(default_factory=list)
    links: list[Symlink] = field(default_factory=list)
    #: For ``storage_format="tar"``, in the store: ``size`` in bytes, ``crc32``, ``digests`` and ``etag`` of the tar.
    tar: dict[str, Any] | None = None

    def of_rank(self, rank: int) -> Manifest:
        """What is this rank's or nobody's in particular. Directories have no rank: many may have files in one."""
        mine = (rank, None)
        files = [entry for entry in self.files if entry.rank in mine]
        return replace(self, files=files, links=[link for link in self.links if link.rank in mine])

    def only(self, paths: Collection[str]) -> Manifest:
        """These files and links alone, by their paths; ``KeyError`` names one that is not there."""
        for path in set(paths).difference(self.paths):
            raise KeyError(path)
        return replace(
            self, files=[entry for entry in self.files if entry.path in paths],
            links=[link for link in self.links if link.path in paths], dirs=[],
        )  # fmt: skip

    @property
    def paths(self) -> list[str]:
        """Of files and links."""
        return [entry.path for entry in self.files] + [link.path for link in self.links]

    def files_behind_links(self) -> list[tuple[str, FileEntry]]:
        """(path, file) for every path that leads to a file through a symbolic link, for clients that know no links.

        Through one link to a folder: what is reached through a second one within it is left out, and so is a link to a
        folder above itself, whose files would have no end.
        """
        if not self.links:  # Asked at every save.
            return []
        files = {entry.path: entry for entry in self.files}
        links = {link.path: link.target for link in self.links}
        found: list[tuple[str, FileEntry]] = []
        for path in links:
            target = follow(path, links)
            if not target or path.startswith(f"{target}/"):
                continue
            if target in files:
                found.append((path, files[target]))
                continue
            above = f"{target}/"
            reached = {inner: inner for inner in files if inner.startswith(above)}
            reached |= {inner: follow(inner, links) or "" for inner in links if inner.startswith(above)}
            found += [(path + inner[len(target) :], files[at]) for inner, at in reached.items() if at in files]
        return found

    @property
    def size(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        data: dict[str, Any] = {"format": FORMAT, "files": [_file_json(entry) for entry in self.files]}
        data |= {"dirs": self.dirs, "links": [link[: 2 if link.rank is None else 3] for link in self.links]}
        return {**data, "tar": self.tar} if self.tar else data

    @classmethod
    def from_json(cls, data: Any, *, where: str) -> Manifest:
        """Read and check a manifest.

        Raises
        ------
        IntegrityError
            It is none, of another format, or names a path outside of the checkpoint; ``where`` is named.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r} is unknown to this version")
            return cls(
                files=[_entry(item) for item in data["files"]],
                dirs=[_directory(*item) for item in data["dirs"]],
                links=[_symlink(*item) for item in data["links"]],
                tar=_tar(data.get("tar")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise IntegrityError(
                f"The manifest cannot be read: {type(error).__name__}: {error}",
                where=where,
                hint="The checkpoint is damaged or was written by another version; load an earlier one",
            ) from None


def _file_json(entry: FileEntry) -> dict[str, Any]:
    # By hand and without what is not there: this stands in save(), once for each file.
    data: dict[str, Any] = {"path": entry.path, "size": entry.size, "mode": entry.mode, "how": entry.how}
    if entry.ino:
        data["ino"] = entry.ino
    if entry.mtime_ns:
        data["mtime_ns"] = entry.mtime_ns
    if entry.offset:
        data["offset"] = entry.offset
    if entry.crc32 is not None:
        data["crc32"] = entry.crc32
    if entry.rank is not None:
        data["rank"] = entry.rank
    if entry.digests:
        data["digests"] = entry.digests
    if entry.etag:
        data["etag"] = entry.etag
    return data


def _symlink(path: Any, target: Any, rank: Any = None) -> Symlink:
    if rank is not None and not _are_numbers(rank):
        raise ValueError(f"bad rank for {path!r}")
    return Symlink(check_path(path), str(target), rank)


def _directory(path: Any, mode: Any, mtime_ns: Any = 0) -> Directory:
    if not _are_numbers(mode) or not _is_time(mtime_ns):
        raise ValueError(f"bad numbers for {path!r}")
    return Directory(check_path(path), mode & PERMISSIONS, mtime_ns)


def _entry(item: Mapping[str, Any]) -> FileEntry:
    # A later version may say more of a file.
    entry = FileEntry(**(item if _FIELDS.issuperset(item) else {name: item[name] for name in _FIELDS & item.keys()}))
    check_path(entry.path)
    crcs = entry.crc32 if entry.crc32 is not None else []
    numbers = (entry.size, entry.offset, entry.mode, entry.rank or 0, *crcs)
    if not _are_numbers(*numbers) or not _is_time(entry.mtime_ns):
        raise ValueError(f"bad numbers for {entry.path!r}")
    return entry._replace(mode=entry.mode & PERMISSIONS, **_known_again(entry.digests, entry.etag))


def _known_again(digests: Any, etag: Any) -> dict[str, Any]:
    """Digests and ETag as they stand, or nothing of what makes no sense: a load does without."""
    is_text = isinstance(digests, (list, tuple)) and all(isinstance(digest, str) for digest in digests)
    return {"digests": tuple(digests) if is_text else (), "etag": etag if isinstance(etag, str) else ""}


def _tar(facts: Any) -> dict[str, Any] | None:
    if facts is None:
        return None
    if not _are_numbers(facts["size"], *facts["crc32"]):
        raise ValueError("bad numbers for the tar")
    return {**facts, **_known_again(facts.get("digests"), facts.get("etag"))}


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int) and 0 <= value < _MOST for value in values)


def _is_time(mtime_ns: Any) -> bool:
    """Any time that a file can have: from before 1970, and from after 2262, where 64 bits of nanoseconds end."""
    return isinstance(mtime_ns, int) and -_MOST_NS <= mtime_ns < _MOST_NS


def check_path(path: str) -> str:
    """Return the relative path of something in a checkpoint.

    Raises
    ------
    ValueError
        It leads out of the checkpoint, or no file system has such a path.
    """
    if not isinstance(path, str) or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"path {path!r} leads out of the checkpoint")
    if path.count("/") >= MAX_DEPTH:
        raise ValueError(f"path {path[:100]!r}… is more than {MAX_DEPTH} folders deep")
    os.fsencode(path)
    return path


def follow(path: str, links: Mapping[str, str]) -> str | None:
    """Where a path leads within a checkpoint when all links on its way are followed; None: out of it, or in a circle.
    The empty path is the checkpoint's own folder.
    """
    left, at, hops = path.split("/"), "", 0
    while left:
        part = left.pop(0)
        if part == "..":
            if not at:
                return None
            at = at.rpartition("/")[0]
        elif part not in ("", "."):
            at = f"{at}/{part}" if at else part
            if at in links:
                hops += 1
                if hops > MAX_HOPS or links[at].startswith("/"):
                    return None
                left, at = links[at].split("/") + left, at.rpartition("/")[0]
    return at


def dump(data: Any) -> bytes:
    """JSON as it is stored: compact, ASCII (surrogates escaped)."""
    return json.dumps(data, separators=(",", ":")).encode()


def load(data: bytes, *, where: str) -> Any:
    """Parse stored JSON.

    Raises
    ------
    IntegrityError
        It is not JSON; ``where`` is named.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"Not JSON: {error}", where=where) from None
