"""What the store has of earlier checkpoints, by content: what comes again, under whatever name, need not be sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..config import CHUNK_BYTES, KNOWN_CHUNKS
from ..manifest import Manifest
from ..stores.base import Place, Stored


class EarlierContent:
    """An index of objects by the digests of their chunks; of equal chunks, the last one counts.

    Parameters
    ----------
    limit : int
        How many chunks are remembered.
    """

    def __init__(self, limit: int = KNOWN_CHUNKS) -> None:
        self._limit = limit
        #: Size in bytes and what is known of it, by key; oldest first.
        self._objects: dict[str, tuple[int, Stored]] = {}
        #: Key and number of a chunk, by its digest.
        self._chunks: dict[str, tuple[str, int]] = {}
        self._count = 0

    def add(self, key: str, size: int, stored: Stored) -> None:
        """Remember an object, if it can be told from one that takes its place."""
        self.forget(key)
        if not stored.digests or not stored.etag:
            return
        self._objects[key] = size, stored
        self._count += len(stored.digests)
        self._chunks.update((digest, (key, number)) for number, digest in enumerate(stored.digests))
        while self._count > self._limit and len(self._objects) > 1:
            self.forget(next(iter(self._objects)))

    def forget(self, key: str) -> None:
        """It is gone, or another object by now."""
        _, stored = self._objects.pop(key, (0, Stored([])))
        self._count -= len(stored.digests)
        for digest in stored.digests:
            if self._chunks.get(digest, ("", 0))[0] == key:
                del self._chunks[digest]

    def find(self, digests: Sequence[str]) -> Place | None:
        """Where these chunks lie one after the other."""
        key, first = self._chunks.get(digests[0], ("", 0)) if digests else ("", 0)
        if key not in self._objects:
            return None
        size, stored = self._objects[key]
        if stored.digests[first : first + len(digests)] != tuple(digests):
            return None
        return Place(key, stored.etag, size, first * CHUNK_BYTES)

    def of(self, key: str) -> Stored | None:
        """What is known of an object."""
        return self._objects.get(key, (0, None))[1]


def objects_of(key: str, manifest: Manifest) -> Iterator[tuple[str, int, Stored]]:
    """Key, size in bytes, and what is known of each object of the checkpoint under ``key``."""
    if manifest.tar is not None:
        facts = manifest.tar
        yield key, facts["size"], Stored(facts["crc32"], facts["digests"], facts["etag"])
        return
    for entry in manifest.files:
        if entry.crc32 is not None and entry.digests:
            yield f"{key}/{entry.path}", entry.size, Stored(entry.crc32, entry.digests, entry.etag)
