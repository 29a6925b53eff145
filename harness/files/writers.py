"""Every way a trainer can write over a file, in this process or in another one. Quick to import."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

from harness.flow_runs.environments import with_our_modules

#: How a file is rewritten. ``kept`` ones hold their descriptor or mapping open for ever: no lease can be had.
WAYS = ("truncate", "r+b", "append", "mmap", "mmap kept", "shrink", "open kept", "rename")

_APPENDED = 64 << 10


def content(number: int, size: int) -> bytes:
    """The content of save ``number``: every 8 bytes tell which save they belong to."""
    return (number + 1).to_bytes(8, "little") * (size // 8) + b"\xff" * (size % 8)


class Rewriter:
    """Writes one file in one way. The first write makes the file."""

    def __init__(self, way: str, path: Path) -> None:
        assert way in WAYS
        self.way, self.path = way, path
        self._map: mmap.mmap | None = None
        self._fd = -1

    def write(self, number: int, size: int) -> None:
        """Write the content of save ``number`` over what is there."""
        if not self.path.exists():
            self.path.write_bytes(content(number, size))
            return
        data = content(number, size)
        if self.way == "truncate":
            with open(self.path, "wb") as file:
                file.write(data)
        elif self.way == "r+b":
            with open(self.path, "r+b") as file:
                file.write(data)
        elif self.way == "append":
            with open(self.path, "ab") as file:
                file.write(content(number, _APPENDED))
        elif self.way == "mmap":
            with open(self.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                _fill(mapped, data)
        elif self.way == "mmap kept":
            if self._map is None:
                with open(self.path, "r+b") as file:
                    self._map = mmap.mmap(file.fileno(), 0)
            _fill(self._map, data)
        elif self.way == "shrink":
            os.truncate(self.path, size // 2)
            os.truncate(self.path, size)
            with open(self.path, "r+b") as file:
                file.write(data[:-1])
        elif self.way == "open kept":
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_WRONLY)
            os.pwrite(self._fd, data, 0)
        else:
            temporary = self.path.with_suffix(".new")
            temporary.write_bytes(data)
            os.replace(temporary, self.path)

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        if self._fd >= 0:
            os.close(self._fd)


def _fill(mapped: mmap.mmap, data: bytes) -> None:
    count = min(len(mapped), len(data))
    mapped[:count] = data[:count]


class RemoteWriters:
    """Rewriters in a process of their own, such as a data loader or a trainer in another language."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_our_modules(),
        )  # fmt: skip

    def write(self, way: str, path: Path, number: int, size: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{way}\t{path}\t{number}\t{size}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "written\n"

    def close(self) -> None:
        self._process.communicate("")


class LocalWriters:
    """Rewriters in this process."""

    def __init__(self) -> None:
        self._rewriters: dict[tuple[str, Path], Rewriter] = {}

    def write(self, way: str, path: Path, number: int, size: int) -> None:
        if (way, path) not in self._rewriters:
            self._rewriters[way, path] = Rewriter(way, path)
        self._rewriters[way, path].write(number, size)

    def close(self) -> None:
        for rewriter in self._rewriters.values():
            rewriter.close()


def _serve() -> None:
    writers = LocalWriters()
    for line in sys.stdin:
        way, path, number, size = line.rstrip("\n").split("\t")
        writers.write(way, Path(path), int(number), int(size))
        print("written", flush=True)


if __name__ == "__main__":
    _serve()
