"""The buffers in which states are staged: used again, bounded, and gone with their process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import SpoolError
from async_ckpt.spool.spool import Spool
from async_ckpt.state import buffers as buffers_module
from async_ckpt.state.buffers import Buffer, Buffers
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system import memory
from harness.flow_runs.environments import with_our_modules
from harness.tasks.task import TASK

MIB = 1 << 20


@pytest.fixture
def shm(on_filesystem: object) -> Path:
    return on_filesystem("tmpfs")  # type: ignore[operator, no-any-return]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool.create(str(tmp_path / "spools"), TASK, StoreSpec("local", str(tmp_path / "store")))
    yield made
    made.snapshots.remove_annexes(made.directory)


def made(spool: Spool, shm: Path, **settings: object) -> Buffers:
    return Buffers(spool, Config(state_dir=str(shm), **settings))  # type: ignore[arg-type]


def in_memory(spool: Spool) -> list[str]:
    """The files that the spool has in memory."""
    return [name for annex in spool.snapshots.annexes() for _, _, names in os.walk(annex) for name in names]


def snapshot(spool: Spool, buffer: Buffer) -> str:
    """What was staged becomes a part of a snapshot, as a save has it."""
    data = spool.snapshots.new_directory(buffer.path)
    os.makedirs(data)
    target = os.path.join(data, "state.safetensors")
    buffer.move_to(target)
    buffer.taken = False
    return target


def test_a_buffer_is_used_again_once_its_snapshot_is_gone(spool: Spool, shm: Path) -> None:
    buffers = made(spool, shm)
    first = buffers.take(MIB)
    target = snapshot(spool, first)
    second = buffers.take(MIB)
    assert second is not first
    assert second.in_memory
    os.unlink(target)
    assert buffers.take(MIB) is first


def test_one_that_is_still_in_a_snapshot_is_not_written_to(spool: Spool, shm: Path) -> None:
    buffers = made(spool, shm)
    first = buffers.take(MIB)
    assert first.memory is not None
    first.memory[:5] = b"first"
    target = snapshot(spool, first)
    for _ in range(3):
        other = buffers.take(MIB)
        assert other is not first
        snapshot(spool, other)
    assert Path(target).read_bytes()[:5] == b"first"


def test_one_that_has_lost_its_own_name_is_not_taken_for_free(spool: Spool, shm: Path) -> None:
    """A program that cleans /dev/shm: the name that is left is the snapshot's."""
    buffers = made(spool, shm)
    first = buffers.take(MIB)
    assert first.memory is not None
    first.memory[:5] = b"first"
    target = snapshot(spool, first)
    os.unlink(first.path)
    second = buffers.take(MIB)
    assert second is not first
    assert Path(target).read_bytes()[:5] == b"first"
    os.unlink(second.path)
    second.taken = False
    assert buffers.take(MIB).in_memory
    assert buffers.bytes_in_memory == MIB, "what cannot be used again counts no more"


def test_no_more_than_twice_the_state_is_taken_in_memory(spool: Spool, shm: Path) -> None:
    buffers = made(spool, shm)
    taken = [buffers.take(MIB) for _ in range(4)]
    assert [buffer.in_memory for buffer in taken] == [True, True, False, False]
    assert buffers.bytes_in_memory == 2 * MIB


def test_a_limit_less_than_the_state_leaves_the_memory_alone(
    spool: Spool, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    buffers = made(spool, shm, max_host_bytes=MIB - 1)
    assert not buffers.take(MIB).in_memory
    assert not buffers.take(MIB).in_memory
    assert [line for line in caplog.messages if "max_host_bytes" in line] == [
        f"The state is staged in the spool, not in memory: max_host_bytes={MIB - 1} is less than its {MIB} bytes"
    ]
    assert buffers.take(MIB, most_bytes=MIB).in_memory


def test_states_of_another_size_do_not_pile_up(spool: Spool, shm: Path) -> None:
    buffers = made(spool, shm)
    for size in range(MIB, 2 * MIB, MIB // 16):
        os.unlink(snapshot(spool, buffers.take(size)))
    assert buffers.bytes_in_memory <= 2 * MIB
    assert len(in_memory(spool)) == 1


def test_a_memory_file_system_without_room_is_passed_over(
    spool: Spool, shm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container, whose /dev/shm has 64 MiB unless somebody asks for more."""
    caplog.set_level("INFO")

    def statvfs(path: str, real: Callable[[str], os.statvfs_result] = os.statvfs) -> os.statvfs_result:
        values = list(real(path))
        if path == str(shm):
            values[4] = MIB // values[1]
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)
    buffers = made(spool, shm)
    assert buffers.take(MIB).in_memory
    assert not buffers.take(MIB + 1).in_memory
    assert f"{shm} has {MIB} bytes left, and the state has {MIB + 1}" in caplog.text


@pytest.mark.parametrize("folder", ["", "/no/such/directory", "/proc"])
def test_without_a_directory_in_memory_the_spool_has_it(spool: Spool, folder: str) -> None:
    buffer = Buffers(spool, Config(state_dir=folder)).take(MIB)
    assert not buffer.in_memory
    assert buffer.path.startswith(spool.directory)


def test_memory_that_does_not_suffice_is_not_taken_and_that_is_said_once(
    spool: Spool, shm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    buffers = made(spool, shm)
    for available in (MIB, MIB + 1, MIB + 2):
        monkeypatch.setattr("async_ckpt.state.buffers.available_bytes", lambda: available)  # noqa: B023
        assert not buffers.take(MIB).in_memory
    assert buffers.take(MIB // 2).in_memory
    assert caplog.text.count("bytes of memory are available") == 1


def test_no_room_anywhere_is_an_error_that_says_both(spool: Spool, shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_ckpt.state.buffers.available_bytes", lambda: MIB)
    with pytest.raises(SpoolError, match=r"no room for a state.*bytes are left.*In memory there is none either"):
        made(spool, shm).take(1 << 60)
    assert not os.listdir(spool.path("data"))


def test_a_spare_is_there_for_the_next_state(spool: Spool, shm: Path) -> None:
    buffers = made(spool, shm)
    snapshot(spool, buffers.take(MIB))
    buffers.spare(MIB)
    assert buffers.bytes_in_memory == 2 * MIB
    buffers.spare(MIB)
    assert buffers.bytes_in_memory == 2 * MIB
    assert buffers.take(MIB).in_memory
    buffers.spare(MIB)
    assert buffers.bytes_in_memory == 2 * MIB


_ENDS = """
import os, sys
from async_ckpt.config import Config
from async_ckpt.spool.spool import Spool
from async_ckpt.state.buffers import Buffers
spool = Spool.open(sys.argv[1])
buffers = Buffers(spool, Config(state_dir=sys.argv[2]))
buffers.take(1 << 20)
if sys.argv[3] == "fork" and os.fork() == 0:
    sys.exit()
os.wait() if sys.argv[3] == "fork" else None
names = [name for annex in spool.snapshots.annexes() for name in os.listdir(annex)]
assert len(names) == 1, names
if sys.argv[3] == "kill":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["exit", "fork", "kill"])
def test_it_is_gone_with_its_process(spool: Spool, shm: Path, end: str) -> None:
    """One that was killed leaves its buffer; whoever looks after the spool finds and removes it."""
    done = subprocess.run(
        [sys.executable, "-c", _ENDS, spool.directory, str(shm), end], env=with_our_modules(), timeout=60, check=False
    )
    assert done.returncode == (-9 if end == "kill" else 0)
    assert spool.snapshots.has_dead_buffers() == (end == "kill")
    spool.snapshots.sweep(spool.snapshots.leftovers())
    assert not in_memory(spool)


def test_what_a_task_left_that_is_never_retried_is_found_by_the_next_one(
    spool: Spool, shm: Path, tmp_path: Path
) -> None:
    """Its snapshots stay, as a retry on this machine would upload them; and so does what a living process has."""
    other = Spool.create(str(tmp_path / "others"), TASK, StoreSpec("local", str(tmp_path / "store")))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ENDS, other.directory, str(shm), "kill"], env=with_our_modules(), timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == -9
        (dead,) = in_memory(other)
        used = made(other, shm)
        kept, living = used.take(MIB), used.take(MIB)
        snapshot(other, kept)
        made(spool, shm).take(MIB)
        names = in_memory(other)
        assert dead not in names
        assert sorted(names) == sorted(
            ["state.safetensors", os.path.basename(kept.path), os.path.basename(living.path)]
        )
    finally:
        other.snapshots.remove_annexes(other.directory)


# -- how much memory there is ------------------------------------------------------------------------------------------


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize("path", ["/", "/a", "/a/b", "/not/seen/here"])
def test_the_limit_of_any_group_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    own = tmp_path / "cgroup"
    own.write_text(f"0::{path}\n")
    monkeypatch.setattr(memory, "_OWN_GROUP", str(own))
    root = tmp_path / "groups"
    group(
        root, memory__max=f"{4 * MIB}\n", memory__current=f"{3 * MIB}\n", memory__stat=f"anon 1\ninactive_file {MIB}\n"
    )
    group(root / "a", memory__max="max\n", memory__current="1\n", memory__stat="")
    group(root / "a" / "b", memory__max=f"{MIB}\n", memory__current="0\n", memory__stat="inactive_file 0\n")
    assert memory.available_bytes(str(root)) == (MIB if path == "/a/b" else 2 * MIB)


def test_the_older_kind_of_groups_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "cgroup"
    own.write_text("3:cpu:/x\n2:memory:/job\n0::/\n")
    monkeypatch.setattr(memory, "_OWN_GROUP", str(own))
    group(
        tmp_path / "groups" / "memory" / "job", memory__limit_in_bytes=str(8 * MIB),
        memory__usage_in_bytes=str(9 * MIB), memory__stat="total_inactive_file 0",
    )  # fmt: skip
    assert memory.available_bytes(str(tmp_path / "groups")) == 0


def test_without_groups_the_machine_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_OWN_GROUP", str(tmp_path / "none"))
    assert memory.available_bytes(str(tmp_path)) == pytest.approx(memory.of_machine(), rel=0.2)


def test_one_that_another_task_took_for_a_dead_ones_is_made_again(
    spool: Spool, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked for room at the same moment: one has a file, and has not locked it yet."""
    real, taken = buffers_module.try_lock, list[str]()

    def lock(fd: int) -> bool:
        if len(taken) < 2:
            taken.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.unlink(taken[-1])
        return real(fd)

    monkeypatch.setattr(buffers_module, "try_lock", lock)
    buffer = made(spool, shm).take(MIB)
    assert buffer.in_memory
    assert buffer.path not in taken
    assert len(taken) == 2
