"""Big files that are edited at random between saves, in every way that could fool who sends only what changed."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from async_ckpt.config import CHUNK_BYTES
from harness.common.crc_twins import POLYNOMIAL, POLYNOMIAL_BYTES, with_same_crc

_MIB = 1 << 20


class EditedFiles:
    """A directory of big files; ``expected`` says what they have to be, by path: SHA-256 in hex digits.

    Parameters
    ----------
    root : Path
        Made if it is not there; what is in it is taken as it is.
    chance : random.Random
        Draws all edits.
    most : int
        Bytes of all files together; what is over it is cut off or removed.
    """

    def __init__(self, root: Path, chance: random.Random, *, most: int = 160 * _MIB) -> None:
        self.root, self._chance, self._most = root, chance, most
        self._numbers = 0
        self.expected: dict[str, str] = {}
        root.mkdir(exist_ok=True)
        for path in root.iterdir():
            self._look(path)
        while len(self.expected) < 3:
            self._new()

    def edit(self, name: str = "") -> str:
        """Do one of ``EDITS``, drawn if it is not named; returns its name."""
        name = name or self._chance.choice(sorted(EDITS))
        EDITS[name](self)
        while len(self.expected) < 3:
            self._new()
        while sum(path.stat().st_size for path in self._paths()) > self._most:
            self._shorten(self._any(1))
        return name

    # -- what there is -----------------------------------------------------------------------------------------------

    def _paths(self) -> list[Path]:
        return [self.root / name for name in sorted(self.expected)]

    def _any(self, least: int = 0) -> Path:
        """A file of so many bytes; made where there is none."""
        found = [path for path in self._paths() if path.stat().st_size >= least]
        return self._chance.choice(found) if found else self._new(least + self._size())

    def _name(self) -> Path:
        self._numbers += 1
        while (path := self.root / f"file-{self._numbers}").exists():
            self._numbers += 1
        return path

    def _size(self) -> int:
        """Around the borders of what is cut into chunks."""
        whole = self._chance.choice([0, 1, 1, 2, 3]) * CHUNK_BYTES
        return max(whole + self._chance.choice([-1, 0, 0, 1, 5, 70_001, _MIB, 5 * _MIB, 7_654_321]), 0)

    def _new(self, size: int = -1) -> Path:
        path = self._name()
        self._write(path, self._chance.randbytes(self._size() if size < 0 else size))
        return path

    def _write(self, path: Path, data: bytes) -> None:
        """All of a file, in place or by a rename."""
        target = path if path.exists() and self._chance.random() < 0.5 else path.with_name(".new")
        target.write_bytes(data)
        if target != path:
            os.replace(target, path)
        self._look(path)

    def _patch(self, path: Path, offset: int, data: bytes) -> None:
        """A part of a file, in place, or of a copy that takes its place."""
        target = path
        if self._chance.random() < 0.5:
            target = path.with_name(".new")
            shutil.copyfile(path, target)
        with target.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        if target != path:
            os.replace(target, path)
        self._look(path)

    def _look(self, path: Path) -> None:
        self.expected[path.name] = sha256_of(path)

    def _place(self, path: Path) -> int:
        return self._chance.randrange(path.stat().st_size)

    def _chunk(self, path: Path) -> int:
        """Offset of one of its whole chunks."""
        return self._chance.randrange(path.stat().st_size // CHUNK_BYTES) * CHUNK_BYTES

    def _piece(self) -> bytes:
        return self._chance.randbytes(self._chance.choice([1, 100, 4096, 300_001, 3 * _MIB]))

    # -- edits -------------------------------------------------------------------------------------------------------

    def _in_place(self) -> None:
        path = self._any(1)
        self._patch(path, self._place(path), self._piece())

    def _append(self) -> None:
        path = self._any()
        self._patch(path, path.stat().st_size, self._piece())

    def _insert(self) -> None:
        """What follows moves."""
        path = self._any(1)
        data, at = path.read_bytes(), self._chance.choice([0, self._place(path)])
        self._write(path, data[:at] + self._piece() + data[at:])

    def _insert_chunk(self) -> None:
        """The same by a whole chunk: at a border the others are found one further."""
        path = self._any(CHUNK_BYTES)
        data, at = path.read_bytes(), self._chunk(path)
        self._write(path, data[:at] + self._chance.randbytes(CHUNK_BYTES) + data[at:])

    def _cut_out(self) -> None:
        path = self._any(1)
        data, at = path.read_bytes(), self._place(path)
        self._write(path, data[:at] + data[at + len(self._piece()) :])

    def _shorten(self, path: Path) -> None:
        size = self._chance.choice([0, self._place(path), path.stat().st_size // CHUNK_BYTES * CHUNK_BYTES // 2])
        os.truncate(path, size)
        self._look(path)

    def _truncate(self) -> None:
        self._shorten(self._any(1))

    def _hole(self) -> None:
        """Zeros that no disk block has, at the end, or a chunk in the middle."""
        path = self._any(CHUNK_BYTES)
        if self._chance.random() < 0.5:
            os.truncate(path, path.stat().st_size + self._chance.choice([1, CHUNK_BYTES]))
        else:
            at, size = self._chunk(path), path.stat().st_size
            rest = path.read_bytes()[at + CHUNK_BYTES :]
            os.truncate(path, at)
            os.truncate(path, size)
            with path.open("r+b") as file:
                file.seek(at + CHUNK_BYTES)
                file.write(rest)
        self._look(path)

    def _swap_chunks(self) -> None:
        path = self._any(2 * CHUNK_BYTES)
        one, other = self._chunk(path), self._chunk(path)
        data = path.read_bytes()
        self._patch(path, one, data[other : other + CHUNK_BYTES])
        self._patch(path, other, data[one : one + CHUNK_BYTES])

    def _rename(self) -> None:
        path, target = self._any(), self._name()
        path.rename(target)
        self.expected[target.name] = self.expected.pop(path.name)

    def _swap_names(self) -> None:
        one, other, aside = self._any(), self._any(), self.root / ".aside"
        if one != other:
            one.rename(aside)
            other.rename(one)
            aside.rename(other)
            names = one.name, other.name
            self.expected[names[0]], self.expected[names[1]] = self.expected[names[1]], self.expected[names[0]]

    def _copy(self) -> None:
        path, target = self._any(), self._name()
        shutil.copyfile(path, target)
        self._look(target)

    def _merge(self) -> None:
        one, other = self._any(), self._any()
        self._write(self._name(), one.read_bytes() + other.read_bytes())
        self._remove_one(one)

    def _split(self) -> None:
        path = self._any(CHUNK_BYTES + 1)
        data, at = path.read_bytes(), self._chance.choice([CHUNK_BYTES, self._place(path)])
        self._write(self._name(), data[at:])
        self._write(path, data[:at])

    def _same_again(self) -> None:
        """Equal content in a new file."""
        path = self._any()
        shutil.copyfile(path, path.with_name(".new"))
        os.replace(path.with_name(".new"), path)

    def _remove(self) -> None:
        self._remove_one(self._any())

    def _remove_one(self, path: Path) -> None:
        path.unlink()
        del self.expected[path.name]

    def _chunk_with_same_crc(self) -> None:
        """A whole chunk of other content, with the same CRC-32, size and name."""
        self._give_a_chunk_the_same_crc(self._any(CHUNK_BYTES))

    def _bits_with_same_crc(self) -> None:
        """A few bits, so that the CRC-32 stays; and the file's time as well."""
        path = self._any(POLYNOMIAL_BYTES + 1)
        at = self._chance.randrange(path.stat().st_size - POLYNOMIAL_BYTES)
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(POLYNOMIAL_BYTES)
        other = int.from_bytes(data, "little") ^ POLYNOMIAL
        times = path.stat()
        new = path.with_name(".new")
        shutil.copyfile(path, new)
        with new.open("r+b") as file:
            file.seek(at)
            file.write(other.to_bytes(POLYNOMIAL_BYTES, "little"))
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.replace(new, path)
        self._look(path)

    def _two_with_same_crc(self) -> None:
        """A second file of the same size, of which one chunk differs, with the same CRC-32."""
        path, target = self._any(CHUNK_BYTES), self._name()
        shutil.copyfile(path, target)
        self._give_a_chunk_the_same_crc(target)

    def _give_a_chunk_the_same_crc(self, path: Path) -> None:
        at = self._chunk(path)
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(CHUNK_BYTES)
        self._patch(path, at, with_same_crc(data, self._chance))


#: By name.
EDITS: dict[str, Callable[[EditedFiles], None]] = {
    name.removeprefix("_").replace("_", " "): getattr(EditedFiles, name)
    for name in (
        "_in_place", "_append", "_insert", "_insert_chunk", "_cut_out", "_truncate", "_hole", "_swap_chunks",
        "_rename", "_swap_names", "_copy", "_merge", "_split", "_same_again", "_remove", "_chunk_with_same_crc",
        "_bits_with_same_crc", "_two_with_same_crc",
    )
}  # fmt: skip


def sha256_of(path: Path) -> str:
    """Of a file's content, in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(_MIB):
            digest.update(data)
    return digest.hexdigest()


def sums_of(root: Path) -> dict[str, str]:
    """SHA-256 of all files directly in a directory, by name."""
    return {path.name: sha256_of(path) for path in root.iterdir()}
