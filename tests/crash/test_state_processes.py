"""States that are saved while processes are forked, and by processes that end at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_ckpt.state.buffers import Buffer
from async_ckpt.state.stager import state_saver
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import Task, kill, wait_until
from tests.crash.test_state import Held, assert_is, loaded, names_in_memory, state

SIZE = 32 << 20

#: Saves one state, and ends while the next one is copied: as long as it is held, where it is to be.
_ENDS = """
import os, sys, threading
from async_ckpt.state.copies import Copies
from async_ckpt.state.stager import state_saver
from async_ckpt.task.checkpointer import Checkpointer
from tests.crash.test_state import state
saver = state_saver(Checkpointer.from_environment())
saver.save(state(0))
if sys.argv[1] == "os._exit":
    Copies.finish = lambda copies, threads: threading.Event().wait(60)
saver.save(state(1, int(sys.argv[2])), staging="async")
os._exit(0) if sys.argv[1] == "os._exit" else sys.exit(0)
"""


@pytest.mark.parametrize(("how", "kept"), [("os._exit", [0]), ("sys.exit", [0, 1])])
def test_a_process_that_ends_waits_for_its_copies_unless_it_leaves_by_os_exit(
    task: Task, how: str, kept: list[int]
) -> None:
    checkpointer = task.start()
    command = [sys.executable, "-c", _ENDS, how, str(SIZE)]
    subprocess.run(command, env=task.environment(checkpointer), check=True, timeout=50)
    references = checkpointer.list()
    checkpointer.flush(60)
    assert task.committed_versions() == kept
    for number, reference in zip(kept, reversed(references), strict=True):
        assert_is(loaded(task, reference), number, SIZE if number else 1 << 20)
    wait_until(lambda: not names_in_memory(checkpointer.spool), "its memory is given back")


def _save_in_child(checkpointer: Checkpointer) -> None:
    state_saver(checkpointer).save(state(1, SIZE), staging="async")


def test_a_child_of_multiprocessing_waits_for_its_copies(task: Task) -> None:
    checkpointer = task.start()
    state_saver(checkpointer).save(state(0), staging="async")
    child = multiprocessing.get_context("fork").Process(target=_save_in_child, args=(checkpointer,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]
    assert_is(loaded(task, checkpointer.list()[0]), 1, SIZE)


@pytest.mark.parametrize("uploader", ["process", "thread"])
def test_a_child_that_lives_on_holds_nothing_of_what_its_parent_copies(
    task: Task, monkeypatch: pytest.MonkeyPatch, uploader: str
) -> None:
    """As a data loader, forked while a state is copied."""
    held = Held(monkeypatch)
    checkpointer = task.start(uploader=uploader)
    spool, saver = checkpointer.spool, state_saver(checkpointer)
    saver.save(state(0), staging="async")
    wait_until(lambda: names_in_memory(spool), "it is in memory")
    ours, theirs = os.pipe()
    forked, child_is_there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.write(child_is_there, b".")
        os.read(ours, 1)  # Until its parent is gone.
        os._exit(0)
    os.close(ours)
    try:
        os.read(forked, 1)  # Python has done in the child what it does after a fork.
        (annex,) = spool.snapshots.annexes()
        held.go_on.set()
        assert in_use(os.getpid(), annex), "else this test sees nothing"
        assert not in_use(child, annex)
        for number in range(1, 4):
            saver.save(state(number), staging="async").staged()
        checkpointer.flush(60)
        assert task.committed_versions() == [0, 1, 2, 3]
        for number, reference in enumerate(reversed(checkpointer.list())):
            assert_is(loaded(task, reference), number)
        del saver
        checkpointer.close(clean=True)
        wait_until(lambda: not os.path.exists(annex), "the memory is given back, though the child lives")
    finally:
        kill(child)
        os.waitpid(child, 0)
        for fd in (theirs, forked, child_is_there):
            os.close(fd)


@pytest.mark.long
@pytest.mark.parametrize("uploader", ["process", "thread"])
def test_data_loaders_are_forked_while_states_are_copied(task: Task, uploader: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is installed for the long tests")
    checkpointer = task.start(uploader=uploader)
    saver, wanted = state_saver(checkpointer), []
    model = torch.nn.Linear(700, 700)  # More than is copied at once.
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        for inputs in torch.utils.data.DataLoader(
            torch.randn(8, 700), batch_size=4, num_workers=2, multiprocessing_context="fork"
        ):
            model(inputs).square().mean().backward()
            optimizer.step()
            saver.save({"model": model.state_dict()}, staging="async")
            wanted.append(model.weight.detach().clone())
    checkpointer.flush(60)
    found = [loaded(task, reference)["model"]["weight"] for reference in reversed(checkpointer.list())]
    assert [bool((one == other).all()) for one, other in zip(found, wanted, strict=True)] == [True] * 6


def test_a_child_that_frees_what_its_parent_had_mapped_loses_nothing_of_its_own(tmp_path: Path) -> None:
    buffer: Buffer | None = Buffer(f"/dev/shm/{tmp_path.name}-{os.getpid()}", SIZE, in_memory=True)
    assert buffer is not None
    try:
        child = os.fork()
        if child == 0:
            own = [
                np.ones(SIZE + 4096 * number, dtype=np.uint8) for number in range(4)
            ]  # One finds the place, if it is free.
            buffer = None
            os._exit(0 if all(array.all() for array in own) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        buffer.drop()


def in_use(pid: int, folder: str) -> list[str]:
    """Files of a folder that a process has open or mapped."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [text for text in [*links, *maps] if folder in text]


@pytest.mark.parametrize("staging", ["sync", "async"])
def test_random_numbers_go_on_where_they_were_and_the_uploader_may_be_a_thread(task: Task, staging: str) -> None:
    checkpointer = task.start(uploader="thread")
    own, old, new = random.Random(5), np.random.RandomState(6), np.random.default_rng(7)
    own.gauss(0, 1)  # It keeps a second number for later.
    old.standard_normal()
    generators: dict[str, Any] = {"own": own.getstate(), "old": old.get_state(), "new": new.bit_generator.state}
    saved = state_saver(checkpointer).save({**state(0), "generators": generators}, staging=staging).staged()
    wanted = [own.gauss(0, 1), own.random(), *old.standard_normal(3), *new.standard_normal(3)]
    checkpointer.flush(60)
    found = loaded(task, saved)
    assert_is(found, 0)
    own, old, new = random.Random(), np.random.RandomState(), np.random.default_rng()
    own.setstate(found["generators"]["own"])
    old.set_state(found["generators"]["old"])
    new.bit_generator.state = found["generators"]["new"]
    assert [own.gauss(0, 1), own.random(), *old.standard_normal(3), *new.standard_normal(3)] == wanted
    wait_until(lambda: not checkpointer.spool.records.ids(), "it is given back")
