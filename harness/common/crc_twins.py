"""Other content with the same CRC-32."""

from __future__ import annotations

import zlib


def same_crc(data: bytes) -> bytes:
    """Content of the same length and CRC-32 that differs from ``data`` (of at least 40 bytes) near its beginning.

    A CRC is linear: of the 33 ways to change one bit in the first bytes, some must cancel each other out.
    """
    zero = zlib.crc32(bytes(len(data)))
    # What a changed bit does to the CRC, and which bits were changed for it, by the highest bit of what it does.
    rows: dict[int, tuple[int, int]] = {}
    for bit in range(33):
        flip = bytearray(len(data))
        flip[bit // 8] |= 1 << bit % 8
        effect, used = zlib.crc32(flip) ^ zero, 1 << bit
        while effect and effect.bit_length() in rows:
            other, others = rows[effect.bit_length()]
            effect, used = effect ^ other, used ^ others
        if not effect:
            break
        rows[effect.bit_length()] = effect, used
    made = bytearray(data)
    for bit in range(33):
        made[bit // 8] ^= (used >> bit & 1) << bit % 8
    return bytes(made)
