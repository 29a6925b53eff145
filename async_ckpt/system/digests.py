"""Digests of content, for every ``CHUNK_BYTES`` of it: a CRC-32, by which stores and loads see damage, and 128 bits by
which content is known again.

XXH3-128 is the first choice for the latter: it takes a tenth of the time of the CRC-32 in the same pass (54 GB/s on one
core with AVX-512, 4 GB/s), so no network outruns it. By accident, two of 10^12 different chunks have the same one with
a probability below 10^-14. It is no protection from somebody who makes two contents with the same digest on purpose:
whoever can do that writes the checkpoint anyway, and would spoil his own.

Where its package is missing (a pod's environment may have little more than the standard library), SHA-256 does it, cut
to 128 bits, if the processor has instructions for it. Without them it would be slower than many networks: content has
no such digests then, and is sent again.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .files import is_hole

try:  # Four times faster; a pod may be without it, and the agent's control plane does without.
    from zlib_ng.zlib_ng import crc32 as crc32
except ImportError:
    from zlib import crc32 as crc32

try:
    import xxhash
except ImportError:
    xxhash = None  # type: ignore[assignment]

#: How much is read at a time to be digested, in bytes: little enough to stay in the processor's cache.
_BUFFER = 256 << 10

#: SHA-256 is used from this many bytes a second on: a processor without instructions for it is slower.
_LEAST_BYTES_PER_S = 1e9
_TRIED_BYTES = 1 << 20


class ChunkDigests(NamedTuple):
    """Of one chunk: its CRC-32, and the other digest as ``<algorithm>:<32 hex digits>``; empty: it has none."""

    crc32: int
    digest: str


class Digester:
    """Takes a chunk piece by piece.

    Parameters
    ----------
    known_again : bool
        Whether it is to have the digest by which it is known again.
    crc : bool
        Whether it is to have a CRC-32, which takes ten times as long; without one that is 0.
    """

    def __init__(self, *, known_again: bool, crc: bool = True) -> None:
        algorithm = _algorithm() if known_again else None
        self._crc, self._has_crc = 0, crc
        self._name, make = algorithm if algorithm is not None else ("", _nothing)
        self._state = make()

    def update(self, data: bytes | memoryview) -> None:
        if self._has_crc:
            self._crc = crc32(data, self._crc)
        if self._state is not None:
            self._state.update(data)

    def result(self) -> ChunkDigests:
        digest = f"{self._name}:{self._state.hexdigest()[:32]}" if self._state is not None else ""
        return ChunkDigests(self._crc, digest)


def digest_chunk(fd: int, offset: int, count: int, *, known_again: bool = False) -> ChunkDigests:
    """Digests of ``count`` bytes of a file at ``offset``; of fewer where it ends before."""
    if count > _BUFFER and is_hole(fd, offset, offset + count):
        return _of_zeros(count, known_again)
    digester, end, buffer = Digester(known_again=known_again), offset + count, _buffers.view
    while offset < end:
        got = os.preadv(fd, [buffer[: end - offset]], offset)
        if not got:
            break
        digester.update(buffer[:got])
        offset += got
    return digester.result()


def can_know_again() -> bool:
    """Whether content has digests on this machine by which it is known again."""
    return _algorithm() is not None


@functools.lru_cache(maxsize=8)
def _of_zeros(count: int, known_again: bool) -> ChunkDigests:
    digester, zeros = Digester(known_again=known_again), memoryview(bytes(_BUFFER))
    for at in range(0, count, _BUFFER):
        digester.update(zeros[: count - at])
    return digester.result()


@functools.lru_cache(maxsize=1)
def _algorithm() -> tuple[str, Callable[[], Any]] | None:
    if xxhash is not None:
        return "xxh128", xxhash.xxh3_128
    data = bytes(_TRIED_BYTES)
    seconds = min(_seconds(lambda: hashlib.sha256(data)) for _ in range(3))
    return ("sha256", hashlib.sha256) if _TRIED_BYTES / seconds >= _LEAST_BYTES_PER_S else None


def _nothing() -> Any:
    """No digest."""


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class _Buffers(threading.local):
    """One buffer a thread, on a page of its own: reading into memory that is not aligned takes several times as long.

    Private, as anonymous maps of Python are not: a forked child would write into its parent's.
    """

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.view = memoryview(mmap.mmap(-1, _BUFFER, flags=flags))


_buffers = _Buffers()
