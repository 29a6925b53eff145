"""What benchmarks transfer, and what the sink serves: one pseudo-random piece, again and again.

So nobody has to keep gigabytes to know what was to arrive. Pure standard library.
"""

from __future__ import annotations

import functools
import os
import random

PIECE_BYTES = 16 << 20


@functools.lru_cache(maxsize=1)
def piece() -> memoryview:
    """The same bytes in every process; noise, which nothing can compress."""
    return memoryview(random.Random(16).randbytes(PIECE_BYTES))


def write(path: str, size: int) -> None:
    """A file of the pattern. It is on the disk when this returns: nothing is written back while others measure."""
    with open(path, "wb", buffering=0) as file:
        for offset in range(0, size, PIECE_BYTES):
            file.write(piece()[: size - offset])
        os.fsync(file.fileno())


def is_pattern(path: str, size: int) -> bool:
    """Whether a file has this size and begins and ends with what it should."""
    if os.path.getsize(path) != size:
        return False
    with open(path, "rb") as file:
        for offset in (0, max(size - 4096, 0) // PIECE_BYTES * PIECE_BYTES):
            file.seek(offset)
            count = min(size - offset, 4096)
            if file.read(count) != piece()[:count]:
                return False
    return True
