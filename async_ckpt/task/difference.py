"""Which files, and how many bytes, differ between two checkpoints: by their manifests, without reading a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..config import CHUNK_BYTES
from ..manifest import FileEntry, Manifest

ADDED, REMOVED, CHANGED, UNKNOWN = "added", "removed", "changed", "not known"


class Difference(NamedTuple):
    """One path.

    Parameters
    ----------
    path : str
        In one of the two, or both.
    how : str
        ``added``, ``removed``, ``changed``, or ``not known``: of the same size, and nothing tells of the content.
    bytes : int or None
        How many bytes differ at most: what is the same is known in pieces of 16 MiB. None: not known.
    """

    path: str
    how: str
    bytes: int | None


def difference(old: Manifest, new: Manifest) -> list[Difference]:
    """What is different in the newer of two checkpoints, by path."""
    before = {entry.path: entry for entry in old.files}
    after = {entry.path: entry for entry in new.files}
    links_before, links_after = ({link.path: link.target for link in one.links} for one in (old, new))
    found = [Difference(path, REMOVED, before[path].size) for path in before.keys() - after.keys()]
    found += [Difference(path, ADDED, after[path].size) for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        found += _compared(before[path], after[path])
    found += [Difference(path, REMOVED, 0) for path in links_before.keys() - links_after.keys()]
    for path, target in links_after.items():
        if links_before.get(path) != target:
            found.append(Difference(path, CHANGED if path in links_before else ADDED, 0))
    return sorted(found)


def _compared(old: FileEntry, new: FileEntry) -> list[Difference]:
    pieces = [(one, other) for one, other in ((old.digests, new.digests), (old.crc32, new.crc32)) if one and other]
    # Digests of two algorithms are never equal; the CRC is always the same one.
    comparable = [(one, other) for one, other in pieces if _same_kind(one[0], other[0])]
    if not old.size or not new.size:
        return [Difference(new.path, CHANGED, max(old.size, new.size))] if old.size != new.size else []
    if not comparable:
        return [Difference(new.path, UNKNOWN if old.size == new.size else CHANGED, None)]
    one, other = comparable[0]
    differs = _bytes_that_differ(one, other, old.size, new.size)
    return [Difference(new.path, CHANGED, differs)] if differs else []


def _same_kind(one: object, other: object) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.partition(":")[0] == other.partition(":")[0]
    return True


def _bytes_that_differ(old: Sequence[object], new: Sequence[object], old_size: int, new_size: int) -> int:
    differs = 0
    for number in range(max(len(old), len(new))):
        begin = number * CHUNK_BYTES
        mine = [min(max(size - begin, 0), CHUNK_BYTES) for size in (old_size, new_size)]
        same = number < min(len(old), len(new)) and old[number] == new[number] and mine[0] == mine[1]
        differs += 0 if same else max(mine)
    return differs
