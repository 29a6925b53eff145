"""Other content with the same CRC-32."""

from __future__ import annotations

import random
import zlib

#: CRC-32's polynomial as its bits come in a byte stream: content that differs by a multiple of it has the same CRC-32.
POLYNOMIAL = 0x1DB710641
POLYNOMIAL_BYTES = 5


def with_same_crc(data: bytes, chance: random.Random) -> bytes:
    """Other content of the same length and the same CRC-32: nearly every byte differs."""
    count = len(data) - POLYNOMIAL_BYTES
    if count < 1:
        raise ValueError(f"{len(data)} bytes have no room for another content with the same CRC-32")
    factor, difference = int.from_bytes(chance.randbytes(count), "little") | 1, 0
    for bit in range(POLYNOMIAL.bit_length()):
        if POLYNOMIAL >> bit & 1:
            difference ^= factor << bit
    other = (int.from_bytes(data, "little") ^ difference).to_bytes(len(data), "little")
    assert zlib.crc32(other) == zlib.crc32(data)
    assert other != data
    return other
