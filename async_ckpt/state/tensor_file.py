"""``state.safetensors`` as blocks of bytes, mapped or read."""

from __future__ import annotations

import itertools
import mmap
import os
from typing import Any

from ..errors import IntegrityError
from . import safetensors

#: Pages that nobody writes to need no room; Python has the name since 3.12.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
#: Smaller blocks of the file are read into Python's own memory: there may be only so many maps.
_MAP_FROM = 1 << 20


class TensorFile:
    """The file of tensors, as blocks: bytes that are one storage."""

    def __init__(self, fd: int, path: str, together: Any, *, mapped: bool) -> None:
        self._fd, self._path = fd, path
        self.entries = safetensors.read_header(fd, path)
        #: Where the block of a tensor begins and ends in the file, if that is more than the tensor.
        self._blocks: dict[str, tuple[int, int]] = {}
        for names in together if isinstance(together, list) else [None]:
            self._join(names)
        self._buffers: dict[tuple[int, int], tuple[Any, int]] = {}
        self._spare: Any = None
        size = os.fstat(fd).st_size
        flags = mmap.MAP_PRIVATE | _NORESERVE
        self._map = mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE) if mapped else None

    def _join(self, names: Any) -> None:
        fine = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
        found = [self.entries.get(name) for name in names] if fine else [None]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found) or any(one.end != other.begin for one, other in itertools.pairwise(entries)):
            raise IntegrityError("The structure of the state does not fit its tensors", where=self._path)
        self._blocks.update(dict.fromkeys(names, (entries[0].begin, entries[-1].end)))

    def block(self, name: str) -> tuple[int, int]:
        entry = self.entries[name]
        return self._blocks.get(name, (entry.begin, entry.end))

    def buffer(self, block: tuple[int, int]) -> tuple[Any, int]:
        """A writable buffer, and where in it the block begins."""
        if self._map is not None:
            return self._map, block[0]
        found = self._buffers.get(block)
        if found is None:
            begin, end = block
            size = end - begin
            memory, self._spare = self._spare, None
            if memory is None or len(memory) < size:
                memory = mmap.mmap(-1, size) if size >= _MAP_FROM else bytearray(size)
            with memoryview(memory)[:size] as view:
                done = 0
                while done < size:
                    count = os.preadv(self._fd, [view[done : done + (1 << 30)]], begin + done)
                    if not count:
                        raise IntegrityError("The file of tensors has become shorter", where=self._path)
                    done += count
            found = self._buffers[block] = memory, 0
        return found

    def forget(self, block: tuple[int, int]) -> None:
        """A block that was copied elsewhere needs no memory here."""
        self._buffers.pop(block, None)

    def reuse(self, block: tuple[int, int]) -> None:
        """The same, and nobody looks at its memory any more: the next block is read into it."""
        self._spare = self._buffers.pop(block, (None, 0))[0] or self._spare
