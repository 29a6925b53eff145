"""The copies of one state into its buffer: by a device, by all cores, or by one thread that leaves them to training."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from ..errors import SnapshotError
from ..system.files import pwrite_all
from ..system.handlers import allow
from .arrangement import Piece
from .buffers import Buffer
from .device import Cuda
from .plan import Plan

#: Tensors on the host of at most so many bytes are copied at once, also where the others are copied later.
_SMALL_BYTES = 64 << 10
#: So many bytes of a tensor are at hand at one time, where it is not copied as a whole.
_SLICE_BYTES = 64 << 20
#: A tensor is cut into pieces of this size for threads that copy side by side.
_CUT_BYTES = 8 << 20


class _Watched:
    """Pieces, and the versions that their tensors have now."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self._versions = _versions(pieces)

    def check(self) -> None:
        """Raise ``SnapshotError`` if somebody has written to one of them since."""
        if _versions(self.pieces) != self._versions:
            before = iter(self._versions)
            for piece in self.pieces:
                if any(tensor._version != next(before) for tensor in piece.watched):
                    raise _changed(piece)


def _versions(pieces: list[Piece]) -> list[int]:
    return [tensor._version for piece in pieces for tensor in piece.watched]


class Copies:
    """See the module's docstring.

    Parameters
    ----------
    cuda : Cuda, optional
        For tensors on CUDA devices.
    check : bool
        Compare the copies with the state at the end.
    """

    def __init__(self, plan: Plan, buffer: Buffer, cuda: Cuda | None, *, check: bool) -> None:
        self._plan, self._buffer, self._cuda, self._check = plan, buffer, cuda, check
        self._begun = False
        #: What is copied while the training goes on, with its versions when the copy began; of that, what the host has
        #: not copied yet; and the events of devices.
        self._late = _Watched([])
        self._left: list[Piece] = []
        self._events: list[Any] = []
        self._lock = threading.Lock()
        #: Whether whoever trains has asked to be held up: what is written from then on comes after the copies.
        self._held = False

    def begin(self) -> None:
        """Copy what is small, and what nobody could tell of that it was written to; have devices begin. Only once.

        The forward pass of a model may write to what is small, such as running means.

        Raises
        ------
        SnapshotError, OSError
            As ``finish``.
        """
        if self._begun:
            return
        self._begun = True
        at_once: list[Piece] = []
        ordered: list[Piece] = []
        beside: list[Piece] = []
        for piece in self._plan.pieces:
            late = piece.nbytes > _SMALL_BYTES and bool(piece.watched)
            if self._cuda is not None and self._buffer.memory is not None and getattr(piece.source, "is_cuda", False):
                (beside if late else ordered).append(piece)
            else:
                # What another device has is copied here, where its order among that device's work is known.
                (self._left if late and piece.source.is_cpu else at_once).append(piece)
        self._late = _Watched([*self._left, *beside])
        watched = _Watched(at_once)
        for piece in at_once:
            self._copy(piece)
        self._check_all(watched)
        self._enqueue(ordered, beside=False)
        self._enqueue(beside, beside=True)
        self._write(self._plan.header, 0)

    def _enqueue(self, pieces: list[Piece], *, beside: bool) -> None:
        if pieces and self._cuda is not None and self._buffer.memory is not None:
            memory = self._buffer.memory
            self._events += self._cuda.copy(((_place(piece, memory), piece.source) for piece in pieces), beside=beside)

    def finish(self, *, threads: int) -> None:
        """Copy the rest, and wait for devices.

        Parameters
        ----------
        threads : int
            How many copy side by side at most.

        Raises
        ------
        SnapshotError
            A tensor was written to before the copies were over.
        OSError
            The disk is full.
        """
        self._copy_all(self._left, threads)
        for event in self._events:
            event.synchronize()
        with self._lock:
            if not self._held:
                self._check_all(self._late)

    def hold_training(self) -> bool:
        """Have what training enqueues on devices from now on come after the copies. False: they are made on the host,
        which has to be waited for.

        Raises
        ------
        SnapshotError
            A tensor was written to already.
        """
        if self._left or not self._events or self._cuda is None:
            return False
        with self._lock:
            if not self._held:
                self._late.check()
                self._cuda.hold_training(self._events)
                self._held = True
        return True

    def _check_all(self, watched: _Watched) -> None:
        """See that nobody has written to what was copied. Where every byte is compared, also what changes no version is
        found, such as a write through ``.data`` or by numpy.
        """
        watched.check()
        if self._check:
            for piece in watched.pieces:
                if not self._is_equal(piece):
                    raise _changed(piece)

    # -- on the host -----------------------------------------------------------------------------------------------

    def _write(self, data: bytes, offset: int) -> None:
        if self._buffer.memory is not None:
            self._buffer.memory[offset : offset + len(data)] = data
        else:
            pwrite_all(self._buffer.fd, data, offset)

    def _copy_all(self, pieces: list[Piece], threads: int) -> None:
        """Copy with some threads side by side what lies on the host in order; it is cut, as a tensor may be most of it.

        Not with torch's own threads: they wait for each other after every tensor, which takes long on a busy machine.
        """
        cuts: deque[tuple[int, int, int]] = deque()
        for piece in pieces:
            if self._buffer.memory is None or piece.address == -1:
                self._copy(piece)
                continue
            target = self._buffer.address + piece.offset
            for start in range(0, piece.nbytes, _CUT_BYTES):
                cuts.append((target + start, piece.address + start, min(_CUT_BYTES, piece.nbytes - start)))

        def work() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    ctypes.memmove(*cuts.popleft())  # Without the interpreter's lock.

        threads = min(threads, len(cuts), len(os.sched_getaffinity(0)))
        helpers = [threading.Thread(target=work, name="async_ckpt-copy", daemon=True) for _ in range(threads - 1)]
        with contextlib.suppress(RuntimeError):  # There can be no more threads: then fewer do it.
            for helper in helpers:
                helper.start()
        work()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()

    def _copy(self, piece: Piece) -> None:
        if self._buffer.memory is None:
            for offset, data in _in_order(piece.source):
                allow()  # A disk may take long.
                pwrite_all(self._buffer.fd, data, piece.offset + offset)
        elif piece.address != -1:
            ctypes.memmove(self._buffer.address + piece.offset, piece.address, piece.nbytes)
        else:
            _assign(_place(piece, self._buffer.memory), piece.source)

    def _is_equal(self, piece: Piece) -> bool:
        """Whether the copy is the tensor, bit for bit."""
        at = piece.offset
        for offset, data in _in_order(piece.source):
            if self._buffer.memory is not None:
                copied = memoryview(self._buffer.memory)[at + offset : at + offset + len(data)]
            else:
                copied = memoryview(os.pread(self._buffer.fd, len(data), at + offset))
            if copied != data:
                return False
        return True


def _changed(piece: Piece) -> SnapshotError:
    return SnapshotError(
        f"The state has changed while it was copied: somebody has written to {piece.name}",
        hint="Save when nothing writes to it. With staging='async' call staged() of what was returned before you do",
    )


# -- tensors of torch and arrays of numpy ------------------------------------------------------------------------------


def _is_torch(source: Any) -> bool:
    return hasattr(source, "data_ptr")


def _place(piece: Piece, memory: mmap.mmap) -> Any:
    """The place of a piece in the buffer, as a tensor or array of its kind."""
    source = piece.source
    if _is_torch(source):
        import torch

        flat = torch.frombuffer(memory, dtype=torch.uint8, count=piece.nbytes, offset=piece.offset)
        return flat.view(source.dtype).view(source.shape)
    import numpy as np

    return np.frombuffer(memory, dtype=source.dtype, count=source.size, offset=piece.offset).reshape(source.shape)


def _assign(target: Any, source: Any) -> None:
    if _is_torch(source):
        target.copy_(source)
    else:
        target[...] = source


def _in_order(source: Any) -> Iterator[tuple[int, memoryview]]:
    """The bytes of a tensor, in order, a limited number at a time: (offset, bytes)."""
    flat = source.reshape(-1)
    step = max(_SLICE_BYTES // source.itemsize, 1)
    for start in range(0, flat.shape[0], step):
        part = flat[start : start + step]
        part = part.cpu().contiguous() if _is_torch(part) else part
        address = part.data_ptr() if _is_torch(part) else part.ctypes.data
        yield start * source.itemsize, memoryview((ctypes.c_char * part.nbytes).from_address(address)).cast("B")
