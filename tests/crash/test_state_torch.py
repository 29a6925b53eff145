"""Saved states of torch while a training goes on: what it writes too early is noticed, and is in no checkpoint."""

from __future__ import annotations

import gc
import importlib
import os
import threading
import weakref
from typing import Any

import pytest

from async_ckpt.errors import FlushError, SnapshotError
from async_ckpt.state.copies import Copies
from async_ckpt.state.stager import StateSaver, state_saver
from async_ckpt.task.checkpointer import Checkpointer
from harness.flow_runs import ddp
from harness.tasks.task import Task
from tests.crash.test_state import Held, loaded

# Not importorskip: a module that skips itself counts as skipped where only the tests that are not long were asked for.
torch: Any = None if ddp.MISSING else importlib.import_module("torch")
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(ddp.MISSING), reason=ddp.MISSING or "-")]

#: More than is copied at once.
BIG = 1 << 16


@pytest.fixture
def checkpointer(task: Task) -> Checkpointer:
    return task.start()


@pytest.fixture
def saver(checkpointer: Checkpointer) -> StateSaver:
    return state_saver(checkpointer)


def in_place(weights: Any) -> None:
    with torch.no_grad():
        weights.add_(1)


def by_slice(weights: Any) -> None:
    with torch.no_grad():
        weights[-1] = 5


def through_a_view(weights: Any) -> None:
    weights.detach().view(2, -1)[1].zero_()


def by_foreach(weights: Any) -> None:
    with torch.no_grad():
        torch._foreach_mul_([weights], 2.0)


def out_of(weights: Any) -> None:
    torch.add(torch.ones(BIG), 1, out=weights.detach())


def by_a_fused_optimizer(weights: Any) -> None:
    """It changes no version: that is why optimizers are held up."""
    weights.grad = torch.ones_like(weights)
    torch.optim.Adam([weights], fused=True).step()


WRITES = [in_place, by_slice, through_a_view, by_foreach, out_of]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_before_the_copies_are_over_is_noticed(
    task: Task, checkpointer: Checkpointer, saver: StateSaver, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    held = Held(monkeypatch)
    weights = torch.nn.Parameter(torch.ones(BIG))
    # As a state_dict() has it.
    handle = saver.save({"deep": [{"weights": weights.detach()}]}, staging="async")
    write(weights)
    held.go_on.set()
    with pytest.raises(SnapshotError, match=r"has changed while it was copied: somebody has written to .*weights"):
        handle.staged()
    with pytest.raises(SnapshotError):
        handle.wait(60)
    with pytest.raises(FlushError, match=r"0.mfchckpt.0 \(The state has changed"):
        checkpointer.flush(60)
    assert not task.committed()
    # The next one is none the worse for it.
    monkeypatch.undo()
    assert torch.equal(loaded(task, saver.save({"weights": weights.detach()}).wait(60))["weights"], weights)


@pytest.mark.parametrize("write", [*WRITES, by_a_fused_optimizer])
def test_a_write_after_staged_is_none_of_its_business(task: Task, saver: StateSaver, write: Any) -> None:
    weights = torch.nn.Parameter(torch.ones(BIG))
    handle = saver.save({"weights": weights.detach()}, staging="async").staged()
    write(weights)
    handle.wait(60)
    assert torch.equal(loaded(task, handle)["weights"], torch.ones(BIG))


def test_another_thread_that_writes_under_a_sync_save_is_noticed(
    task: Task, checkpointer: Checkpointer, saver: StateSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.ones(BIG)
    finish = Copies.finish

    def during(copies: Copies, *, threads: int) -> None:
        thread = threading.Thread(target=in_place, args=(tensor,))
        thread.start()
        thread.join()
        finish(copies, threads=threads)

    monkeypatch.setattr(Copies, "finish", during)
    with pytest.raises(SnapshotError, match="written to weights"):
        saver.save({"weights": tensor})
    checkpointer.flush(60)
    assert not task.committed()


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_optimizers_wait_before_their_next_step(
    task: Task, saver: StateSaver, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    model = torch.nn.Linear(256, 256)
    optimizer = torch.optim.Adam(model.parameters(), **options)

    def step() -> None:
        model(torch.ones(256)).sum().backward()
        optimizer.step()

    step()
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = Held(monkeypatch)
    handle = saver.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, staging="async")
    stepping = threading.Thread(target=step)
    stepping.start()
    stepping.join(0.2)
    assert stepping.is_alive()
    assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)
    held.go_on.set()
    stepping.join(60)
    assert not stepping.is_alive()
    handle.wait(60)
    state = loaded(task, handle)
    assert all(torch.equal(state["model"][name], wanted[name]) for name in wanted)
    assert not torch.equal(model.weight, wanted["weight"])


def test_a_step_that_has_nothing_to_wait_for_goes_on(saver: StateSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a copy that has failed, nor in a child, where nobody copies."""
    weights = torch.nn.Parameter(torch.ones(BIG))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    weights.grad = torch.ones_like(weights)
    held = Held(monkeypatch)
    handle = saver.save({"weights": weights.detach()}, staging="async")
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # Those of the parent do not exist here.
        optimizer.step()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    in_place(weights)
    held.go_on.set()
    optimizer.step()
    assert handle.state == "FAILED"


def test_where_no_optimizer_steps_nothing_of_earlier_states_is_held(saver: StateSaver) -> None:
    kept = []
    for _ in range(5):
        weights = torch.ones(BIG)
        kept.append(weakref.ref(weights))
        saver.save({"weights": weights}, staging="async").wait(60)
    del weights
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 1


def test_a_save_that_cannot_begin_holds_nobody_up(saver: StateSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(copies: Copies) -> None:
        raise RuntimeError("CUDA error: out of memory")

    weights = torch.nn.Parameter(torch.ones(BIG))
    monkeypatch.setattr(Copies, "begin", fail)
    for staging in ("sync", "async"):
        with pytest.raises(SnapshotError, match="out of memory"):
            saver.save({"weights": weights.detach()}, staging=staging)
    weights.grad = torch.ones_like(weights)
    torch.optim.SGD([weights], lr=0.1).step()
    monkeypatch.undo()
    saver.save({"weights": weights.detach()}, staging="async").wait(60)


def test_a_forward_pass_may_write_to_small_buffers(
    task: Task, saver: StateSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to the running means of a batch norm."""
    model = torch.nn.BatchNorm1d(16)
    held = Held(monkeypatch)
    handle = saver.save(model.state_dict(), staging="async")
    model(torch.randn(8, 16))
    held.go_on.set()
    handle.wait(60)
    assert loaded(task, handle)["running_mean"].eq(0).all()
    assert model.running_mean.ne(0).any()


def test_tensors_without_versions_are_copied_before_the_save_returns(
    task: Task, saver: StateSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    with torch.inference_mode():
        tensor = torch.ones(BIG)
        handle = saver.save({"weights": tensor}, staging="async")
        tensor.zero_()
    held.go_on.set()
    handle.wait(60)
    assert torch.equal(loaded(task, handle)["weights"], torch.ones(BIG))


@pytest.mark.parametrize("state_dir", ["/dev/shm", ""])
@pytest.mark.parametrize("staging", ["sync", "async"])
def test_tensors_of_all_shapes_arrive_bit_for_bit(task: Task, state_dir: str, staging: str) -> None:
    task.set(state_dir=state_dir, check_state=True)
    checkpointer = task.start()
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(512, 300, generator=generator)
    state = {
        "plain": base,
        "transposed": base.t(),
        "strided": base[::2, ::3],
        "channels": torch.randn(2, 3, 64, 65, generator=generator).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 1000, generator=generator).expand(64, 1000),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(BIG, generator=generator).to(torch.bfloat16),
        "large": torch.randn(20 << 20, generator=generator),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    }
    handle = state_saver(checkpointer).save(state, staging=staging)
    handle.wait(60)
    found = loaded(task, handle)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        there, here = found[name].contiguous().view(-1), tensor.contiguous().view(-1)
        assert torch.equal(there.view(torch.uint8), here.view(torch.uint8)), name
    checkpointer.flush(60)


def test_the_interpreter_goes_on_while_a_thread_copies(saver: StateSaver) -> None:
    """The loop is not held up by the lock of the interpreter: it runs while hundreds of MiB are copied."""
    tensor = torch.zeros(64 << 20)
    saver.save({"weights": tensor}).wait(60)
    handle = saver.save({"weights": tensor}, staging="async")
    turns = 0
    while not handle._staging.copied.is_set():
        turns += 1
    assert turns > 100
    handle.wait(60)
