"""A trainer that writes a checkpoint of several files over and over, and never pauses for a save.

Every 8 bytes it writes are the number of the generation they belong to, file after file, from the first byte to the
last. So of any snapshot it can be said whether it is of one moment, whatever was written when: read in the order of
writing, the numbers only go down, by one, once. The generations that were complete when the save began, and had begun
when it returned, say how old and how new it may be.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from harness.flow_runs.environments import with_our_modules

#: How the files are written: kept open for ever; opened for each generation; through a mapping that is kept for ever,
#: with its descriptor, and without (as PyTorch and allocators of C++ have it); opened with truncation; only appended
#: to; written under another name and renamed.
WAYS = ("open", "r+b", "mmap", "mmap closed", "truncate", "append", "rename")

#: In the order in which they are written. Two of them are linked where links can be had, the third is copied with
#: others into one file.
NAMES = ("weights-b", "weights-a", "step")
_SIZES = (160 << 10, 96 << 10, 8 << 10)
#: What is written in one go.
_PIECE = 4096
#: What is appended to each file in a generation.
_APPENDED = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _words(number: int, size: int) -> bytes:
    return number.to_bytes(8, "little") * (size // 8)


class Progress:
    """How far the writer is, for whoever saves meanwhile: two numbers in a file that both have mapped."""

    def __init__(self, path: Path) -> None:
        with open(path, "a+b") as file:
            file.truncate(16)
            self._map = mmap.mmap(file.fileno(), 16)

    def set(self, index: int, number: int) -> None:
        self._map[8 * index : 8 * index + 8] = number.to_bytes(8, "little")

    @property
    def begun(self) -> int:
        """The last generation of which anything may have been written."""
        return int.from_bytes(self._map[:8], "little")

    @property
    def complete(self) -> int:
        """The last generation of which everything was written."""
        return int.from_bytes(self._map[8:], "little")

    def close(self) -> None:
        self._map.close()


class Mapping:
    """A shared, writable mapping whose descriptor is closed. (Python's own keeps a duplicate of it.)"""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        fd = os.open(path, os.O_RDWR)
        try:
            self._at = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        finally:
            os.close(fd)
        if self._at == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))

    def write(self, data: bytes, offset: int) -> None:
        ctypes.memmove(self._at + offset, data, len(data))

    def write_words(self, number: int, count: int, offset: int) -> None:
        """Write a number ``count`` times, one after the other: the C library copies the first and the last bytes of a
        block at any time.
        """
        words = (ctypes.c_uint64 * count).from_address(self._at + offset)
        for index in range(count):
            words[index] = number

    def close(self) -> None:
        _libc.munmap(self._at, self._size)


class Writer:
    """Writes the files in ``folder`` in one way. The first generation makes them.

    Parameters
    ----------
    folder : Path
        As the writer sees it: through another mount, perhaps.
    progress : Path
        The file of its ``Progress``; two writers of one folder share it.
    """

    def __init__(self, way: str, folder: Path, progress: Path) -> None:
        assert way in WAYS
        self._way, self._folder, self._progress = way, folder, Progress(progress)
        self._kept: dict[str, Any] = {}

    def burst(self, seconds: float, begun: threading.Event | None = None) -> None:
        """Write generations, one after the other, for so long, and at least one."""
        deadline = time.monotonic() + seconds
        while True:
            self._generation(self._progress.complete + 1, begun)
            if time.monotonic() >= deadline:
                return

    def _generation(self, number: int, begun: threading.Event | None) -> None:
        self._progress.set(0, number)
        for name, size in zip(NAMES, _SIZES, strict=True):
            path = self._folder / name
            if self._way == "append":
                with open(path, "ab", buffering=0) as file:
                    file.write(_words(number, _APPENDED))
            elif not path.exists():
                path.write_bytes(_words(number, size))
            else:
                self._write(path, number, size, begun)
            if begun is not None:
                begun.set()
        self._progress.set(1, number)

    def _write(self, path: Path, number: int, size: int, begun: threading.Event | None) -> None:
        if self._way == "rename":
            new = path.with_name(f"{path.name}.tmp")
            new.write_bytes(_words(number, size))
            os.replace(new, path)
            return
        if self._way in ("r+b", "truncate"):
            flags = os.O_WRONLY | (os.O_TRUNC if self._way == "truncate" else 0)
            fd = os.open(path, flags)
            try:
                for offset in range(0, size, _PIECE):
                    os.pwrite(fd, _words(number, _PIECE), offset)
                    if begun is not None:
                        begun.set()
            finally:
                os.close(fd)
            return
        for offset in range(0, size, _PIECE):
            if self._way == "open":
                os.pwrite(self._keep(path, size), _words(number, _PIECE), offset)
            else:
                self._keep(path, size).write_words(number, _PIECE // 8, offset)
            if begun is not None:
                begun.set()

    def _keep(self, path: Path, size: int) -> Any:
        if path.name not in self._kept:
            if self._way == "mmap closed":
                self._kept[path.name] = Mapping(path, size)
            else:
                self._kept[path.name] = fd = os.open(path, os.O_RDWR)
                if self._way == "mmap":
                    self._kept[path.name] = Mapping(path, size)
                    self._kept[f"{path.name} fd"] = fd
        return self._kept[path.name]

    def close(self) -> None:
        for kept in self._kept.values():
            if isinstance(kept, int):
                os.close(kept)
            else:
                kept.close()
        self._progress.close()


class LocalWriter:
    """The writer as a thread of this process."""

    def __init__(self, way: str, folder: Path, progress: Path) -> None:
        self._writer = Writer(way, folder, progress)
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        """Begin a burst; returns when something was written."""
        self.wait()
        begun = threading.Event()
        self._thread = threading.Thread(target=self._writer.burst, args=(seconds, begun))
        self._thread.start()
        assert begun.wait(60)

    def wait(self) -> None:
        """Until the burst has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.wait()
        self._writer.close()


class RemoteWriter:
    """The writer as a process of its own."""

    def __init__(self, way: str, folder: Path, progress: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, way, str(folder), str(progress)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_our_modules(),
        )  # fmt: skip
        self._running = False

    def _expect(self, line: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{line}\n"

    def begin(self, seconds: float) -> None:
        """Begin a burst; returns when something was written."""
        self.wait()
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        self._running = True
        self._expect("begun")

    def wait(self) -> None:
        """Until the burst has ended."""
        if self._running:
            self._running = False
            self._expect("ended")

    def close(self) -> None:
        self.wait()
        self._process.communicate()


def judge(found: dict[str, bytes], way: str, complete: int, begun: int) -> str:
    """What is wrong with the content of a checkpoint; empty if it is of one moment of the save.

    Parameters
    ----------
    complete, begun : int
        The generation that was complete when the save began, and the one that had begun when it had returned.
    """
    # A file that is about to be renamed is there as well, or not.
    if {name.removesuffix(".tmp") if way == "rename" else name for name in found} != set(NAMES):
        return f"it has the files {sorted(found)}"
    if way == "append":
        return _judge_appended(found, complete, begun)
    numbers: list[int] = []
    short, newest = False, 0
    for name, size in zip(NAMES, _SIZES, strict=True):
        data = found[name]
        words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
        if len(data) > size or (len(data) < size and (way != "truncate" or short)):
            return f"{name} has {len(data)} bytes instead of {size}"
        if newest and words[0] == newest:
            return f"{name} is of generation {words[0]}, and a file before it is not complete"
        numbers += words
        if len(data) < size:
            short, newest = True, numbers[0] if numbers else 0
    downwards = sorted(set(numbers), reverse=True)
    if numbers != sorted(numbers, reverse=True) or downwards[0] - downwards[-1] > 1:
        runs = [(number, len(list(same))) for number, same in itertools.groupby(numbers)]
        return f"it is of several moments: {runs[:20]}"
    if downwards[-1] < complete or downwards[0] > begun:
        return f"it is of generation {downwards[-1]} to {downwards[0]}, saved between {complete} and {begun}"
    return ""


def _judge_appended(found: dict[str, bytes], complete: int, begun: int) -> str:
    lengths = []
    for name in NAMES:
        data = found[name]
        expected = b"".join(_words(number, _APPENDED) for number in range(1, len(data) // _APPENDED + 2))
        if data != expected[: len(data)]:
            return f"{name} is not what was appended"
        lengths.append(len(data) / _APPENDED)
    if lengths != sorted(lengths, reverse=True) or lengths[0] - lengths[-1] > 1:
        return f"it is of several moments: {lengths}"
    if lengths[-1] < complete or lengths[0] > begun:
        return f"it has {lengths} generations, saved between {complete} and {begun}"
    return ""


def _serve(way: str, folder: str, progress: str) -> None:
    writer = Writer(way, Path(folder), Path(progress))

    class Say(threading.Event):
        def set(self) -> None:
            if not self.is_set():
                super().set()
                print("begun", flush=True)

    for line in sys.stdin:
        writer.burst(float(line), Say())
        print("ended", flush=True)
    writer.close()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
