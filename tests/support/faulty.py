"""A store that fails when told to, and sources made of nothing."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Sequence

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.errors import NotFound
from async_ckpt.stores.base import Entry, PartsLog, Progress, Source, Store, no_progress


class BytesSource:
    """A source in memory; without a path, like a tar that is made on the fly."""

    name = "bytes"
    path: str | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def pread(self, count: int, offset: int) -> bytes:
        return self._data[offset : offset + count]


def pattern(size: int) -> bytes:
    """Content in which no two chunks and no two pages are alike."""
    block = b"".join(number.to_bytes(8, "little") for number in range(4096))
    return b"".join((block[:-8] + number.to_bytes(8, "big")) for number in range(-(-size // len(block))))[:size]


def crcs_of(data: bytes) -> list[int]:
    """What a store must return for this content, computed in the simplest way."""
    return [zlib.crc32(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]


class FaultyStore(Store):
    """Objects in a dict; every call first raises the next of ``faults``, if there is one left.

    ``put_source`` and ``get_file`` report half of the content before they fail; ``list`` yields ``list_first`` entries.
    """

    def __init__(self, faults: Sequence[Exception] = (), *, list_first: int = 0) -> None:
        self.root = "faulty://"
        self.objects: dict[str, bytes] = {}
        self.faults = list(faults)
        self.calls: list[str] = []
        self.list_first = list_first
        self.closed = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.faults:
            raise self.faults.pop(0)

    async def put_source(
        self, key: str, source: Source, progress: Progress = no_progress, log: PartsLog | None = None
    ) -> list[int]:
        half = source.size // 2
        progress(half)
        self._call("put_source")
        progress(source.size - half)
        self.objects[key] = source.pread(source.size, 0)
        return crcs_of(self.objects[key])

    async def put_bytes(self, key: str, data: bytes) -> None:
        self._call("put_bytes")
        self.objects[key] = data

    async def get_bytes(self, key: str) -> bytes:
        self._call("get_bytes")
        if key not in self.objects:
            raise NotFound("There is no such object", where=key)
        return self.objects[key]

    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        data = self.objects[key]
        progress(len(data) // 2)
        self._call("get_file")
        progress(len(data) - len(data) // 2)
        with open(destination, "wb") as file:
            file.write(data)
        return len(data)

    async def size(self, key: str) -> int:
        self._call("size")
        return len(self.objects[key])

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[Entry]:
        start = f"{prefix}/{beginning}"
        found = [Entry(key, len(data)) for key, data in self.objects.items() if key.startswith(start)]
        for entry in found[: self.list_first]:
            yield entry
        self._call("list")
        for entry in found[self.list_first :]:
            yield entry

    async def delete(self, key: str) -> None:
        self._call("delete")
        self.objects.pop(key, None)

    async def aclose(self) -> None:
        self.closed += 1
