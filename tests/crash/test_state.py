"""Saved states: never torn, never lost after the save has returned, bounded in memory, and nothing is left of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError, SpoolError, UsageError, WaitTimeout
from async_ckpt.ipc.client import AgentClient
from async_ckpt.ranks.who import Ranks
from async_ckpt.spool.spool import Spool
from async_ckpt.state import optimizers, stager
from async_ckpt.state.copies import Copies
from async_ckpt.state.load import load_state
from async_ckpt.state.reference import STAGING
from async_ckpt.state.stager import StateSaver, state_saver
from async_ckpt.task.checkpointer import Checkpointer
from harness.flow_runs.environments import with_our_modules
from harness.tasks.task import Task, agent_pid, is_alive, kill, uploader_pid, wait_until

CRASH_POINTS = ("state:copied", "state:linked", "state:admitted")


def state(number: int, size: int = 1 << 20) -> dict[str, Any]:
    return {"weights": np.full(size, number % 251, dtype=np.uint8), "small": np.arange(3.0) + number, "number": number}


def loaded(task: Task, reference: Any, rank: int = 0, world: int = 1) -> dict[str, Any]:
    into = task.base / "loaded" / f"{reference['attempt']}.{reference['version_id']}"
    if not into.exists():
        task.read(reference, into)
    found: dict[str, Any] = load_state(str(into), lambda: Ranks(rank, world))
    return found


def assert_is(found: dict[str, Any], number: int, size: int = 1 << 20) -> None:
    wanted = state(number, size)
    assert found["number"] == number
    for name in ("weights", "small"):
        assert found[name].tobytes() == wanted[name].tobytes()
        assert found[name].dtype == wanted[name].dtype


def names_in_memory(spool: Spool) -> list[str]:
    return [name for annex in spool.snapshots.annexes() for name in os.listdir(annex)]


@pytest.mark.parametrize("staging", ["sync", "async"])
@pytest.mark.parametrize("state_dir", ["/dev/shm", ""])
def test_what_is_saved_is_loaded_bit_for_bit(task: Task, staging: str, state_dir: str) -> None:
    task.set(state_dir=state_dir)
    checkpointer = task.start()
    references = [state_saver(checkpointer).save(state(n), staging=staging, metadata={"n": n}) for n in range(5)]
    checkpointer.flush(60)
    assert task.committed_versions() == list(range(5))
    for number, reference in enumerate(references):
        assert_is(loaded(task, reference), number)
        assert reference.state == "COMMITTED"
        assert reference["size"] == sum(
            os.stat(task.stored(reference, name)).st_size for name in ("state.safetensors", "state.json")
        )


def test_nothing_is_left_in_memory(task: Task) -> None:
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    for number in range(4):
        saver.save(state(number))
    checkpointer.flush(60)
    spool = checkpointer.spool
    annexes = spool.snapshots.annexes()
    assert annexes
    checkpointer.close(clean=True)
    wait_until(lambda: not any(map(os.path.exists, annexes)), "the agent has taken the annex away")


def test_a_slow_store_does_not_hold_up_saves_nor_fill_the_memory(task: Task) -> None:
    gate = task.gate()
    gate.hold("state")
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    references = [saver.save(state(number)) for number in range(6)]
    for annex in checkpointer.spool.snapshots.annexes():
        inodes = {os.stat(os.path.join(top, name)).st_ino for top, _, names in os.walk(annex) for name in names}
        sizes = sum(
            os.stat(os.path.join(top, name)).st_size
            for top, _, names in os.walk(annex) for name in names if name.endswith("buffer")
        )  # fmt: skip
        assert inodes
        assert sizes <= 2.1 * (1 << 20)
    gate.open("state")
    checkpointer.flush(60)
    for number, reference in enumerate(references):
        assert_is(loaded(task, reference), number)


_SAVES = """
import os, signal, sys
import numpy as np
from async_ckpt.config import Config
from async_ckpt.state.stager import state_saver
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import TASK, agent_pid
from tests.crash.test_state import state
root, store, count, staging, victims = sys.argv[1:]
checkpointer = Checkpointer.start(root, TASK, StoreSpec("local", store), Config.from_env(), uploader="process")
saver = state_saver(checkpointer)
for number in range(int(count)):
    handle = saver.save(state(number), staging=staging)
    print(number, flush=True)
if victims == "none":
    sys.exit()
handle._staging.ended.wait()
if victims == "both":
    os.kill(agent_pid(checkpointer), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def save_and_die(task: Task, count: int, victims: str, staging: str = "sync") -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _SAVES, task.root, task.store.root, str(count), staging, victims],
        env=with_our_modules(), check=False, stdout=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == (0 if victims == "none" else -signal.SIGKILL)
    return list(map(int, done.stdout.split()))


@pytest.mark.parametrize("staging", ["sync", "async"])
@pytest.mark.parametrize("victims", ["trainer", "both", "none"])
def test_what_was_saved_survives_its_processes(task: Task, victims: str, staging: str) -> None:
    gate = task.gate()
    gate.hold("state")
    saved = save_and_die(task, 4, victims, staging)
    assert saved == [0, 1, 2, 3]
    gate.open_all()
    checkpointer = task.start(attempt=1)
    into = task.base / "resumed"
    assert checkpointer.load_newest("fresh", str(into)) is not None
    assert_is(load_state(str(into), lambda: Ranks(0, 1)), 3)
    checkpointer.flush(60)
    assert task.committed() == [(0, number) for number in range(4)]


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_any_point_there_is_the_whole_state_or_none(task: Task, point: str) -> None:
    marker = task.crash_at(point)
    checkpointer = task.start()
    spool = checkpointer.spool
    saved = subprocess.run(
        [sys.executable, "-c", _SUBPROCESS, "3"], env=task.environment(checkpointer), check=False, timeout=120
    )
    assert saved.returncode == -signal.SIGKILL
    assert marker.exists()
    wait_until(lambda: not names_in_memory(spool), "what the dead process left in memory is gone")
    checkpointer.flush(60)
    assert task.committed_versions() == ([0] if point == "state:admitted" else [])
    again = subprocess.run(
        [sys.executable, "-c", _SUBPROCESS, "3"], env=task.environment(checkpointer), check=False, timeout=120
    )
    assert again.returncode == 0
    checkpointer.flush(60)
    assert len(task.committed_versions()) == (4 if point == "state:admitted" else 3)
    wait_until(lambda: not names_in_memory(spool), "the buffers are gone with their process")


_SUBPROCESS = """
import sys
from async_ckpt.state.stager import state_saver
from async_ckpt.task.checkpointer import Checkpointer
from tests.crash.test_state import state
for number in range(int(sys.argv[1])):
    state_saver(Checkpointer.from_environment()).save(state(number))
"""


def test_the_agent_and_its_uploader_may_die_meanwhile(task: Task) -> None:
    gate = task.gate()
    gate.hold("state")
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    references = [saver.save(state(0))]
    kill(uploader_pid(checkpointer))
    references.append(saver.save(state(1)))
    agent = agent_pid(checkpointer)
    kill(agent)
    wait_until(lambda: not is_alive(agent), "the agent is gone")
    references.append(saver.save(state(2)))
    gate.open("state")
    checkpointer.flush(60)
    for number, reference in enumerate(references):
        assert_is(loaded(task, reference), number)


class Held:
    """Copies that wait until a test lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        finish = Copies.finish

        def held(copies: Copies, *, threads: int) -> None:
            assert self.go_on.wait(60)
            finish(copies, threads=threads)

        monkeypatch.setattr(Copies, "finish", held)


def test_a_flush_waits_for_what_is_still_copied(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    checkpointer = task.start()
    handle = state_saver(checkpointer).save(state(7), staging="async")
    assert handle.state == STAGING
    assert not handle.done()
    assert handle.error is None
    with pytest.raises(WaitTimeout, match="is not copied within"):
        handle.staged(0.01)
    with pytest.raises(WaitTimeout, match="is not staged after"):
        handle.wait(0.01)
    with pytest.raises(Exception, match=r"0.mfchckpt.0 \(it is still being copied\)"):
        checkpointer.flush(0.01)
    flushed = threading.Thread(target=checkpointer.flush, args=(60,))
    flushed.start()
    held.go_on.set()
    flushed.join(60)
    assert not flushed.is_alive()
    assert handle.state == "COMMITTED"
    assert handle.staged() is handle
    assert_is(loaded(task, handle), 7)


def test_only_so_many_are_copied_at_one_time(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    for number in range(stager.MAX_STAGING):
        saver.save(state(number), staging="async")
    another = threading.Thread(target=saver.save, args=(state(9),), kwargs={"staging": "async"})
    another.start()
    another.join(0.2)
    assert another.is_alive()
    held.go_on.set()
    another.join(60)
    checkpointer.flush(60)
    assert task.committed_versions() == list(range(stager.MAX_STAGING + 1))


def test_a_copy_that_fails_fails_the_flush_and_names_the_reason(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(copies: Copies, *, threads: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    checkpointer = task.start()
    saver = state_saver(checkpointer)
    good = saver.save(state(1))
    monkeypatch.setattr(Copies, "finish", fail)
    with pytest.raises(SnapshotError, match="device-side assert"):
        saver.save(state(2))
    handle = saver.save(state(3), staging="async")
    with pytest.raises(SnapshotError, match="device-side assert"):
        handle.wait(60)
    assert handle.state == "FAILED"
    assert "device-side assert" in str(handle.error)
    assert "Checkpoint 0.mfchckpt.2 is not saved" in caplog.text
    with pytest.raises(Exception, match=r"0.mfchckpt.2 \(The state cannot be copied.*device-side assert"):
        checkpointer.flush(60)
    assert_is(loaded(task, good), 1)


@pytest.mark.parametrize("staging", ["sync", "async"])
def test_what_changes_under_the_copy_is_found_where_that_is_asked_for(
    task: Task, monkeypatch: pytest.MonkeyPatch, staging: str
) -> None:
    task.set(check_state=True)
    checkpointer = task.start()
    changing = state(1)
    copy = Copies._copy

    def late(copies: Copies, piece: Any) -> None:
        copy(copies, piece)
        changing["weights"][-1] += 1

    monkeypatch.setattr(Copies, "_copy", late)
    with pytest.raises(SnapshotError, match=r"has changed while it was copied.*written to weights"):
        state_saver(checkpointer).save(changing, staging=staging).wait(60)
    monkeypatch.setattr(Copies, "_copy", copy)
    state_saver(checkpointer).save(changing, staging=staging).wait(60)
    assert task.committed_versions() == [1]


@pytest.mark.parametrize("staging", ["sync", "async"])
def test_where_no_thread_can_be_started_it_is_saved_all_the_same(
    task: Task, monkeypatch: pytest.MonkeyPatch, staging: str
) -> None:
    checkpointer, start = task.start(), threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith(("async_ckpt-stager", "async_ckpt-copy")):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    saved = state_saver(checkpointer).save(state(1, 32 << 20), staging=staging)
    checkpointer.flush(60)
    assert_is(loaded(task, saved), 1, 32 << 20)


@pytest.mark.parametrize("staging", ["sync", "async"])
def test_a_state_that_has_all_of_the_memory_goes_to_the_disk_as_its_structure_finds_no_room(
    task: Task, monkeypatch: pytest.MonkeyPatch, staging: str
) -> None:
    checkpointer, write = task.start(), stager._write

    def refuse(path: str, data: bytes) -> None:
        if path.startswith("/dev/shm"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(path, data)

    monkeypatch.setattr(stager, "_write", refuse)
    saver = state_saver(checkpointer)
    references = [saver.save(state(number), staging=staging) for number in range(3)]
    checkpointer.flush(60)
    for number, reference in enumerate(references):
        assert_is(loaded(task, reference), number)
    assert {name.rpartition(".")[2] for name in names_in_memory(checkpointer.spool)} == {"buffer"}


def test_what_is_cleaned_out_of_memory_meanwhile_is_saved_from_the_disk(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    first = saver.save(state(1), staging="async")
    for annex in checkpointer.spool.snapshots.annexes():
        shutil.rmtree(annex)
    held.go_on.set()
    first.wait(60)
    second = saver.save(state(2))
    checkpointer.flush(60)
    assert_is(loaded(task, first), 1)
    assert_is(loaded(task, second), 2)
    assert any(name.endswith(".buffer") for name in names_in_memory(checkpointer.spool)), "memory is used again"


def test_a_copy_that_cannot_begin_is_an_error_and_leaves_its_place_to_others(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer, begin = task.start(), Copies.begin
    saver = state_saver(checkpointer)
    with monkeypatch.context() as patch:
        patch.setattr(Copies, "begin", lambda self: os.pread(-1, 1, 0))
        for _ in range(5):
            with pytest.raises(SpoolError, match="The state cannot be written to the spool"):
                saver.save(state(1), staging="async")
    assert Copies.begin is begin
    saved = saver.save(state(2), staging="async")
    checkpointer.flush(60)
    assert task.committed_versions() == [saved.version_id]
    assert_is(loaded(task, saved), 2)


@pytest.mark.parametrize("staging", ["sync", "async"])
@pytest.mark.parametrize("state_dir", ["/dev/shm", ""])
def test_what_save_returned_may_be_kept_and_holds_nothing_of_the_state(
    task: Task, staging: str, state_dir: str
) -> None:
    task.set(state_dir=state_dir)
    saver = state_saver(task.start())
    kept, arrays = [], []
    for number in range(6):
        content = state(number)
        arrays.append(weakref.ref(content["weights"]))
        kept.append(saver.save(content, staging=staging).wait(60))
        if not number:
            first = len(os.listdir("/proc/self/fd"))
        del content
    wait_until(lambda: not any(array() is not None for array in arrays), "the last thread has let go as well")
    # A second buffer has a descriptor, whenever it is made.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= first + 1, "there is no descriptor for each state", 10)
    assert [reference.state for reference in kept] == ["COMMITTED"] * 6


def test_what_is_admitted_already_is_stored_whatever_is_raised_after_that(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = task.start()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    saver, announce = state_saver(checkpointer), AgentClient.announce
    monkeypatch.setattr(AgentClient, "announce", fail)
    with pytest.raises(KeyboardInterrupt):
        saver.save(state(1))
    monkeypatch.setattr(AgentClient, "announce", announce)
    checkpointer.flush(60)
    assert task.committed_versions() == [0]
    assert_is(loaded(task, checkpointer.list()[0]), 1)


def test_a_copy_that_has_failed_is_known_as_soon_as_it_is_over(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = state_saver(task.start())
    monkeypatch.setattr(Copies, "finish", lambda self, threads: os.pread(-1, 1, 0))
    explained, slow = stager._explained, threading.Event()
    monkeypatch.setattr(stager, "_explained", lambda *arguments: slow.wait(0.2) or explained(*arguments))
    with pytest.raises(SpoolError, match="Bad file descriptor"):
        saver.save(state(1), staging="async").staged(60)


def test_a_state_without_tensors_of_torch_has_nothing_to_do_with_its_optimizers(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may import torch just now."""
    monkeypatch.setitem(sys.modules, "torch.optim.optimizer", None)
    monkeypatch.setattr(optimizers, "_hooked", False)
    monkeypatch.setattr(optimizers, "_copied", {})
    checkpointer = task.start()
    saved = state_saver(checkpointer).save(state(1), staging="async")
    checkpointer.flush(60)
    assert task.committed_versions() == [saved.version_id]
    assert not optimizers._copied


def test_several_threads_and_names_save_side_by_side(task: Task) -> None:
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    made: dict[int, Any] = {}

    def save(first: int) -> None:
        for number in range(first, first + 8):
            staging = "async" if number % 2 else "sync"
            made[number] = saver.save(state(number), name=f"thread-{first}", staging=staging)

    threads = [threading.Thread(target=save, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    checkpointer.flush(60)
    assert len(made) == 24
    for number, reference in made.items():
        assert_is(loaded(task, reference), number)


def test_a_forked_child_saves_for_itself(task: Task) -> None:
    checkpointer = task.start()
    first = state_saver(checkpointer).save(state(0))
    pid = os.fork()
    if pid == 0:
        try:
            state_saver(checkpointer).save(state(1))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    last = state_saver(checkpointer).save(state(2))
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1, 2]
    assert_is(loaded(task, first), 0)
    assert_is(loaded(task, last), 2)


def test_a_forked_child_does_not_wait_for_what_its_parent_copies(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    checkpointer = task.start()
    state_saver(checkpointer).save(state(0), staging="async")
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            held.go_on.set()
            state_saver(checkpointer).save(state(1), staging="async")
            checkpointer.flush(30)
            os._exit(0 if task.committed_versions() == [1] else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    held.go_on.set()
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]


def test_all_ranks_save_one_checkpoint_and_each_gets_its_own_back(task: Task) -> None:
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    handles = [saver.save(state(rank), collective=True, rank=rank, world_size=3) for rank in range(3)]
    checkpointer.flush(60)
    for rank in range(3):
        assert_is(loaded(task, handles[0], rank, 3), rank)


@pytest.mark.parametrize(("saved_by", "rank", "world"), [(3, 3, 4), (3, 0, 2), (3, 0, 4), (1, 1, 2)])
def test_another_number_of_ranks_is_told_that_no_state_is_its_own(
    task: Task, saved_by: int, rank: int, world: int
) -> None:
    checkpointer = task.start()
    saver = state_saver(checkpointer)
    handles = [saver.save(state(each), collective=True, rank=each, world_size=saved_by) for each in range(saved_by)]
    checkpointer.flush(60)
    with pytest.raises(UsageError, match=f"{saved_by} states, .* of this rank: it is rank {rank} of {world}"):
        loaded(task, handles[0], rank, world)


def test_what_was_saved_as_files_is_no_state(task: Task) -> None:
    checkpointer = task.start()
    (task.work / "weights").write_bytes(b"x")
    reference = checkpointer.save(task.work)
    checkpointer.flush(60)
    with pytest.raises(UsageError, match="no state: it has weights"):
        loaded(task, reference)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"staging": "later"}, "staging='later' is unknown"),
        ({"max_host_bytes": -1}, "max_host_bytes=-1"),
        ({"name": "a/b"}, "name"),
        ({"rank": 1}, "collective"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_saved(task: Task, options: dict[str, Any], text: str) -> None:
    checkpointer = task.start()
    with pytest.raises(UsageError, match=text):
        state_saver(checkpointer).save(state(1), **options)
    checkpointer.flush(60)
    assert not task.committed()


def test_a_path_is_no_state(task: Task) -> None:
    checkpointer = task.start()
    for path in ("out", task.work):
        with pytest.raises(UsageError, match=r"The state is a path, .*\. save\(\) saves files"):
            state_saver(checkpointer).save(path)
    checkpointer.flush(60)
    assert not task.committed()


def test_a_state_after_the_end_is_refused(task: Task) -> None:
    checkpointer = task.start()
    checkpointer.close(clean=True)
    with pytest.raises(UsageError, match="step has ended"):
        state_saver(checkpointer).save(state(1))


def test_each_process_has_one_saver(task: Task) -> None:
    checkpointer = task.start()
    assert isinstance(checkpointer, Checkpointer)
    assert state_saver(checkpointer) is state_saver(checkpointer)
    assert isinstance(state_saver(checkpointer), StateSaver)


def test_without_room_in_memory_nor_on_disk_nothing_was_copied(
    task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task.set(on_backlog="raise")
    checkpointer = task.start()
    monkeypatch.setattr(Copies, "begin", lambda copies: pytest.fail("something was copied"))
    monkeypatch.setattr("async_ckpt.state.buffers.available_bytes", lambda: 1)
    monkeypatch.setattr(os, "statvfs", lambda path, real=os.statvfs: _full(real(path)))
    with pytest.raises(Exception, match=r"no room for a state of \d+ bytes.*0 bytes are left"):
        state_saver(checkpointer).save(state(1))
    monkeypatch.undo()
    assert Config.from_env().on_backlog == "wait"
    checkpointer.flush(60)
    assert not task.committed()


def _full(facts: os.statvfs_result) -> os.statvfs_result:
    values = list(facts)
    values[3] = values[4] = 0  # Free blocks, and those for users.
    return os.statvfs_result(values)
