"""What is uploaded: a captured file that may be made private under the reader, and a tar that exists nowhere."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_ckpt.capture.content import CapturedFile, TarContent, TarMember
from async_ckpt.errors import IntegrityError
from async_ckpt.system import files
from harness.files.writers import content

SIZE = 100_003


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(content(0, SIZE))
    return file


def make_private(path: Path) -> None:
    """As the guard does: a copy is renamed over the link, then the trainer writes into the old inode."""
    with open(path, "r+b") as trainers:
        copy = path.with_suffix(".private")
        copy.write_bytes(path.read_bytes())
        os.rename(copy, path)
        trainers.write(b"\xee" * SIZE)


def test_any_range_can_be_read_and_ends_with_the_file(path: Path) -> None:
    source = CapturedFile(str(path), SIZE)
    whole = content(0, SIZE)
    assert source.pread(10, 5) == whole[5:15]
    assert source.pread(1 << 20, SIZE - 3) == whole[-3:]
    assert source.pread(10, SIZE) == b""
    assert source.pread(10, SIZE + 5) == b""
    assert source.pread(0, 0) == b""
    source.close()


def test_reading_goes_on_in_the_private_copy(path: Path) -> None:
    source = CapturedFile(str(path), SIZE)
    first = source.pread(50_000, 0)
    make_private(path)
    assert first + source.pread(SIZE, 50_000) == content(0, SIZE)
    source.close()


def test_a_range_that_was_read_from_the_old_inode_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy comes between the read and the check."""
    source, original, done = CapturedFile(str(path), SIZE), os.pread, []

    def pread_late(fd: int, count: int, offset: int) -> bytes:
        if not done:
            done.append(True)
            make_private(path)
        return original(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread_late)
    assert source.pread(SIZE, 0) == content(0, SIZE)
    source.close()


def copy_of(captured: CapturedFile, target: Path) -> bytes:
    with open(target, "wb") as file:
        captured.copy_to(file.fileno())
    return target.read_bytes()


def read_of(captured: CapturedFile, target: Path) -> bytes:
    return captured.pread(10, 0)


HANDED_OUT = pytest.mark.parametrize("hand_out", [read_of, copy_of])


@HANDED_OUT
@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0])
def test_a_file_of_another_size_is_never_handed_out(
    path: Path, tmp_path: Path, size: int, hand_out: Callable[[CapturedFile, Path], bytes]
) -> None:
    os.truncate(path, size)
    captured = CapturedFile(str(path), SIZE)
    with pytest.raises(IntegrityError, match=f"{SIZE} bytes") as caught:
        hand_out(captured, tmp_path / "copy")
    assert caught.value.where == str(path)
    captured.close()


@HANDED_OUT
def test_a_missing_file_is_named(path: Path, tmp_path: Path, hand_out: Callable[[CapturedFile, Path], bytes]) -> None:
    path.unlink()
    with pytest.raises(IntegrityError, match="is gone"):
        hand_out(CapturedFile(str(path), SIZE), tmp_path / "copy")


def test_a_copy_is_of_one_file_and_of_its_part_of_a_pack(path: Path, tmp_path: Path) -> None:
    whole = content(0, SIZE)
    assert copy_of(CapturedFile(str(path), SIZE), tmp_path / "copy") == whole
    assert copy_of(CapturedFile(str(path), 500, 1000), tmp_path / "part") == whole[1000:1500]
    assert CapturedFile(str(path), 500, 1000).from_file(lambda fd: fd) is None


def test_what_was_copied_from_the_old_inode_is_copied_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer writes under the copy: it is begun anew from the private file."""
    original, copied = files.copy_range, []

    def copy_late(source_fd: int, target_fd: int, count: int, offset: int = 0) -> int:
        if not copied:
            make_private(path)
        copied.append(os.fstat(source_fd).st_ino)
        return original(source_fd, target_fd, count, offset)

    monkeypatch.setattr(files, "clone", lambda *_: False)
    monkeypatch.setattr(files, "copy_range", copy_late)
    assert copy_of(CapturedFile(str(path), SIZE), tmp_path / "copy") == content(0, SIZE)
    assert len(set(copied)) == 2


def test_a_file_that_vanishes_while_it_is_open_is_named(path: Path) -> None:
    source = CapturedFile(str(path), SIZE)
    source.pread(1, 0)
    path.unlink()
    with pytest.raises(IntegrityError, match="is gone"):
        source.pread(1, 0)
    source.close()


def test_readers_in_many_threads_do_not_disturb_each_other_or_the_change(path: Path) -> None:
    source, wrong = CapturedFile(str(path), SIZE), []
    whole = content(0, SIZE)

    def read() -> None:
        wrong.extend(o for o in range(0, SIZE, 997) if source.pread(1000, o) != whole[o : o + 1000])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    make_private(path)
    for thread in threads:
        thread.join()
    source.close()
    assert wrong == []


def test_it_leaves_no_descriptor_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    source = CapturedFile(str(path), SIZE)
    source.pread(10, 0)
    source.close()
    source.pread(10, 0)
    del source
    assert len(os.listdir("/proc/self/fd")) == before


# -- tar ---------------------------------------------------------------------------------------------------------------

NAMES = ["plain", "deep/" * 30 + "file", "n" * 150, "über/模型", os.fsdecode(b"odd-\xff"), "new\nline", "x" * 100]
SIZES = [0, 1, 511, 512, 513, 10_240, 70_001]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[TarMember]:
    folder = tmp_path_factory.mktemp("members")
    found = [TarMember("deep", tarfile.DIRTYPE, 0o750), TarMember("d" * 120, tarfile.DIRTYPE, 0o700)]
    for number, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        file = folder / str(number)
        file.write_bytes(content(number, size))
        found.append(TarMember(name, tarfile.REGTYPE, 0o640 + number, content=CapturedFile(str(file), size)))
    found.append(TarMember("link", tarfile.SYMTYPE, 0o777, target="../" * 50 + "über"))
    return found


def whole_of(source: TarContent) -> bytes:
    return source.pread(source.size, 0)


def test_tarfile_reads_what_went_in(members: list[TarMember]) -> None:
    source = TarContent("key", members)
    data = whole_of(source)
    assert len(data) == source.size
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as tar:
        found = tar.getmembers()
        assert [member.name for member in found] == [member.path for member in members]
        assert [member.mode for member in found] == [stat.S_IMODE(member.mode) for member in members]
        for number, member in enumerate(found[2:-1]):
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == content(number, SIZES[number])
        assert found[-1].linkname == "../" * 50 + "über"
        assert found[0].isdir()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(offset=st.integers(0, 110_000), count=st.integers(0, 120_000))
def test_every_range_is_that_of_the_whole(members: list[TarMember], offset: int, count: int) -> None:
    source = TarContent("key", members)
    assert source.pread(count, offset) == whole_of(source)[offset : offset + count]


def test_a_tar_of_nothing_is_an_empty_tar() -> None:
    source = TarContent("key", [])
    with tarfile.open(fileobj=io.BytesIO(whole_of(source))) as tar:
        assert tar.getnames() == []


def test_the_same_members_give_the_same_bytes(members: list[TarMember]) -> None:
    assert whole_of(TarContent("key", members)) == whole_of(TarContent("key", members))
