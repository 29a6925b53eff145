"""Finding an earlier object of the very same content, for stores that copy whole objects only."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ..config import CHUNK_BYTES
from ..system.digests import Digester
from .base import Content, Earlier, Place, Stored

#: Content is read in pieces of this size, in bytes.
_PIECE = 1 << 20
#: Of so many files it is remembered which chunk had changed.
_MOST_REMEMBERED = 1000


class Same(NamedTuple):
    """An object of the same content, and what is known of it."""

    place: Place
    stored: Stored


class SameContent:
    """Compares content with what an earlier checkpoint has.

    What has changed is known by one chunk, as a rule: by the one that had changed the last time.
    """

    def __init__(self) -> None:
        #: Which chunk of a file of some name and size was another one than in the object it was compared with last.
        self._changed: dict[tuple[str, int], int] = {}

    def find(self, content: Content, earlier: Earlier, go_on: Callable[[], None] = lambda: None) -> Same | None:
        """An earlier object of the same content; None: there is none. Reads the content, as far as it is the same.

        Parameters
        ----------
        go_on : callable
            Called before each chunk; raises where nobody waits any more.
        """
        file = os.path.basename(content.name), content.size
        first = self._changed.get(file, 0)
        place = earlier.find([_digest(content, first)])
        stored = earlier.of(place.key) if place is not None else None
        if place is None or stored is None or (place.offset, place.size) != (first * CHUNK_BYTES, content.size):
            return None
        for number, digest in enumerate(stored.digests):
            go_on()
            if number != first and _digest(content, number) != digest:
                if len(self._changed) >= _MOST_REMEMBERED:
                    self._changed.clear()
                self._changed[file] = number
                return None
        return Same(place, stored)


def _digest(content: Content, number: int) -> str:
    digester, offset = Digester(known_again=True, crc=False), number * CHUNK_BYTES
    end = min(offset + CHUNK_BYTES, content.size)
    for at in range(offset, end, _PIECE):
        digester.update(content.pread(min(_PIECE, end - at), at))
    return digester.result().digest
