"""Content for stores, made of nothing."""

from __future__ import annotations

import zlib

from async_ckpt.config import CHUNK_BYTES


class BytesContent:
    """Content in memory; without a file, like a tar that is made on the fly."""

    name = "bytes"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def from_file(self, copy: object) -> None:
        """There is no such file."""

    def pread(self, count: int, offset: int) -> bytes:
        return self._data[offset : offset + count]


def pattern(size: int) -> bytes:
    """Content in which no two chunks and no two pages are alike."""
    block = b"".join(number.to_bytes(8, "little") for number in range(4096))
    return b"".join((block[:-8] + number.to_bytes(8, "big")) for number in range(-(-size // len(block))))[:size]


def crcs_of(data: bytes) -> list[int]:
    """What a store must return for this content, computed in the simplest way."""
    return [zlib.crc32(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]
