"""Digests, whoever computes them, and however many at once; new files, whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.system import digests, files
from async_ckpt.system.digests import crc32, digest_chunk
from harness.stores.content import pattern

SIZE = CHUNK_BYTES + 1_000_003


@pytest.fixture
def fd(tmp_path: Path) -> int:
    (tmp_path / "file").write_bytes(pattern(SIZE))
    return os.open(tmp_path / "file", os.O_RDONLY)


@pytest.fixture(autouse=True)
def _closed(fd: int) -> object:
    yield
    os.close(fd)


@pytest.mark.parametrize(("offset", "count"), [(0, 0), (0, 1), (5, 300_000), (SIZE - 10, 10)])
def test_any_range_has_a_digest(fd: int, offset: int, count: int) -> None:
    assert digest_chunk(fd, offset, count).crc32 == zlib.crc32(pattern(SIZE)[offset : offset + count])


def test_a_digest_ends_with_the_file(fd: int) -> None:
    assert digest_chunk(fd, SIZE - 10, 1000).crc32 == zlib.crc32(pattern(SIZE)[-10:])


def test_whatever_computes_it_it_is_the_crc_of_zlib() -> None:
    for size in (0, 1, 7, 64, 4097, 1 << 20):
        assert crc32(pattern(size), 12345) == zlib.crc32(pattern(size), 12345)


def test_threads_do_not_share_a_buffer(fd: int) -> None:
    offsets = range(0, CHUNK_BYTES, 1 << 20)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda offset: digest_chunk(fd, offset, 1 << 20).crc32, offsets))
    data = pattern(SIZE)
    assert found == [zlib.crc32(data[offset : offset + (1 << 20)]) for offset in offsets]


def test_a_forked_child_does_not_write_into_its_parents_buffer(fd: int, tmp_path: Path) -> None:
    assert threading.active_count() == 1, "forking beside threads is not what this is about"
    digest_chunk(fd, 0, 1000)
    before = bytes(digests._buffers.view)
    child = os.fork()
    if not child:
        digests._buffers.view[:] = bytes(len(before))
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(digests._buffers.view) == before


def test_preallocating_gives_a_file_its_size_and_its_blocks(tmp_path: Path) -> None:
    size = 3 * CHUNK_BYTES + 5
    with open(tmp_path / "file", "wb") as file:
        files.preallocate(file.fileno(), size)
        status = os.fstat(file.fileno())
    assert status.st_size == size
    assert status.st_blocks * 512 >= size


def test_a_disk_without_room_says_so_before_anything_is_written(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match=r"No space|File too large"):
        files.preallocate(file.fileno(), 1 << 60)


@pytest.mark.parametrize("has_call", [True, False])
def test_where_blocks_cannot_be_had_a_file_gets_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_call: bool
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(files, "_fallocate", refuse if has_call else None)
    with open(tmp_path / "file", "wb") as file:
        files.preallocate(file.fileno(), 12345)
        assert os.fstat(file.fileno()).st_size == 12345


def failing(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ETXTBSY, errno.EBADF, 524])
def test_where_the_kernel_does_not_copy_whatever_it_says_bytes_are_read_and_written(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(files.fcntl, "ioctl", failing(number))
    monkeypatch.setattr(files.os, "copy_file_range", failing(number))
    with open(tmp_path / "copy", "w+b") as copy:
        assert not files.clone(fd, copy.fileno(), SIZE)
        assert files.copy_content(fd, copy.fileno(), SIZE) == SIZE
    assert (tmp_path / "copy").read_bytes() == pattern(SIZE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_copy_that_would_fail_in_any_way_fails_at_once(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(files.fcntl, "ioctl", failing(number))
    with open(tmp_path / "copy", "w+b") as copy, pytest.raises(OSError, match=re.escape(os.strerror(number))):
        files.copy_content(fd, copy.fileno(), SIZE)


@pytest.fixture(params=["nameless", "staged"])
def staging(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for files that are being written, where they need no name, and where they do."""
    if request.param == "staged":
        really = os.open

        def without(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return really(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", without)
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def test_a_new_file_is_there_whole_and_leaves_nothing_beside_it(tmp_path: Path, staging: Path) -> None:
    files.write_new(str(tmp_path / "new"), b"content" * 10_000, str(staging / "x"))
    assert (tmp_path / "new").read_bytes() == b"content" * 10_000
    assert os.listdir(staging) == []


def test_a_new_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path, staging: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_new(str(tmp_path / "no-folder" / "new"), b"content", str(staging / "x"))
    assert os.listdir(staging) == []
    assert not (tmp_path / "no-folder").exists()


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_file_takes_the_place_of_another_one_wherever_names_can_be_exchanged_or_not(
    filesystem: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_renameat2", None)
    old, new = filesystem / "old", filesystem / "new"
    for target in (b"old", None):
        if target is not None:
            old.write_bytes(target)
        new.write_bytes(b"new")
        inode = new.stat().st_ino
        files.take_place(str(new), str(old))
        assert (old.read_bytes(), old.stat().st_ino) == (b"new", inode)
        assert os.listdir(filesystem) == ["old"]
        old.unlink()
    old.write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        files.take_place(str(new), str(old))
    assert old.read_bytes() == b"old"


def test_a_new_file_can_be_made_on_every_file_system(filesystem: Path) -> None:
    files.write_new(str(filesystem / "new"), b"content", str(filesystem / "staged"))
    assert [(path.name, path.read_bytes()) for path in filesystem.iterdir() if path.is_file()] == [("new", b"content")]
