"""Handlers of signals wait for the end of what they must not interrupt, and of nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest

from async_ckpt.system import handlers, undisturbed
from async_ckpt.system.undisturbed import Abandoned, ended_by, go_on, run

Handler = Callable[[int, FrameType | None], None]


@pytest.fixture
def install() -> Iterator[Callable[[int, Handler], Handler]]:
    """Installs handlers that are gone after the test."""
    before: dict[int, object] = {}

    def on(number: int, handler: Handler) -> Handler:
        before.setdefault(number, signal.signal(number, handler))
        return handler

    yield on
    for number, handler in before.items():
        signal.signal(number, handler)  # type: ignore[arg-type]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_handler_comes_after_the_work_and_before_what_called_it_goes_on(
    install: Callable[[int, Handler], Handler],
) -> None:
    seen: list[str] = []
    install(signal.SIGUSR1, lambda *_: seen.append("handler"))

    @handlers.put_off
    def work() -> None:
        send(signal.SIGUSR1)
        send(signal.SIGUSR1)
        seen.append("work")

    work()
    assert seen == ["work", "handler"]


def test_outside_of_it_a_program_finds_its_own_handlers(install: Callable[[int, Handler], Handler]) -> None:
    mine = install(signal.SIGUSR1, lambda *_: None)
    handlers.put_off(lambda: None)()
    assert signal.getsignal(signal.SIGUSR1) is mine
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_whether_system_calls_go_on_after_a_handler_stays_as_it_was(install: Callable[[int, Handler], Handler]) -> None:
    install(signal.SIGUSR1, lambda *_: None)

    def action() -> bytes:
        kept = ctypes.create_string_buffer(1024)
        ctypes.CDLL(None).sigaction(int(signal.SIGUSR1), None, kept)
        return kept.raw[:16] + kept.raw[136:140]  # The handler, the mask of the kernel, the flags.

    for flag in True, False:
        signal.siginterrupt(signal.SIGUSR1, flag)
        before = action()
        handlers.put_off(lambda: None)()
        assert action() == before


def test_what_a_handler_raises_ends_the_work_at_its_next_point_and_leaves_all_handlers(
    install: Callable[[int, Handler], Handler],
) -> None:
    reached = []
    mine = install(signal.SIGUSR1, lambda *_: reached.append("another handler"))

    @handlers.put_off
    def work() -> None:
        send(signal.SIGINT)
        send(signal.SIGUSR1)
        reached.append("before")
        go_on()
        reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["before", "another handler"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)) == (signal.default_int_handler, mine)


def test_a_handler_does_the_same_work_at_a_point_where_it_may_come(install: Callable[[int, Handler], Handler]) -> None:
    seen: list[str] = []

    @handlers.put_off
    def work(name: str) -> None:
        seen.append(f"{name} begins")
        if name == "outer":
            send(signal.SIGUSR1)
            go_on()
        send(signal.SIGUSR2)
        seen.append(f"{name} ends")

    install(signal.SIGUSR1, lambda *_: work("inner"))
    install(signal.SIGUSR2, lambda *_: seen.append("handler"))
    work("outer")
    assert seen == ["outer begins", "inner begins", "inner ends", "handler", "outer ends", "handler"]


@pytest.mark.parametrize("last", [signal.SIGHUP, signal.SIGUSR1, signal.SIGVTALRM])
@pytest.mark.parametrize("raises", [False, True])
def test_a_handler_that_comes_while_the_others_are_put_back_leaves_none_behind(
    install: Callable[[int, Handler], Handler], monkeypatch: pytest.MonkeyPatch, last: int, raises: bool
) -> None:
    """It does the same work, in which handlers wait, and are let come."""
    seen: list[str] = []
    sent: list[int] = []

    @handlers.put_off
    def work() -> None:
        with handlers.Allowed():
            seen.append("work")

    def handler(*_: object) -> None:
        work()
        if raises:
            raise InterruptedError

    signals = (signal.SIGHUP, signal.SIGUSR1, signal.SIGVTALRM)
    for number in signals:
        install(number, handler)
    put_back = handlers._put_back

    def put_back_and_send(number: int) -> None:
        put_back(number)
        if number == last and seen and not sent:
            sent.append(last)
            send(last)

    monkeypatch.setattr(handlers, "_put_back", put_back_and_send)
    with contextlib.suppress(InterruptedError):
        work()
    assert len(seen) == 2
    assert [signal.getsignal(number) for number in signals] == [handler] * 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_may_give_the_signal_back_to_the_kernel(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, lambda *_: (signal.signal(signal.SIGTERM, signal.SIG_DFL), send(signal.SIGTERM)))
        handlers.put_off(lambda: send(signal.SIGTERM))()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


def test_a_child_that_another_thread_forks_meanwhile_has_its_handlers(
    install: Callable[[int, Handler], Handler],
) -> None:
    seen: list[str] = []
    install(signal.SIGUSR1, lambda *_: seen.append("handler"))
    statuses: list[int] = []

    def fork() -> None:
        child = os.fork()
        if not child:
            send(signal.SIGUSR1)
            os._exit(0 if seen == ["handler"] else 1)
        statuses.append(os.waitpid(child, 0)[1])

    @handlers.put_off
    def work() -> None:
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

    work()
    assert statuses == [0]


def test_other_threads_put_nothing_off(install: Callable[[int, Handler], Handler]) -> None:
    mine = install(signal.SIGUSR1, lambda *_: None)
    found = []
    thread = threading.Thread(target=handlers.put_off(lambda: found.append(signal.getsignal(signal.SIGUSR1))))
    thread.start()
    thread.join()
    assert found == [mine]


@pytest.mark.parametrize("put_off", [True, False])
def test_what_waits_is_ended_at_once_by_what_a_handler_raises(
    put_off: bool, install: Callable[[int, Handler], Handler]
) -> None:
    ended: list[str] = []
    released = threading.Event()

    def wait() -> None:
        send(signal.SIGINT)
        with ended_by(released.set):
            assert released.wait(60)
        try:
            go_on()
        except Abandoned:
            ended.append("it knows")

    work = (lambda: run(wait)) if not put_off else handlers.put_off(lambda: run(wait))
    with pytest.raises(KeyboardInterrupt):
        work()
    assert ended == ["it knows"]


def test_nothing_comes_in_between_while_what_waits_is_ended(install: Callable[[int, Handler], Handler]) -> None:
    seen: list[str] = []
    released = threading.Event()
    install(signal.SIGUSR1, lambda *_: seen.append("handler"))

    def end() -> None:
        send(signal.SIGUSR1)
        seen.append("ended")
        released.set()

    def wait() -> None:
        with ended_by(end):
            send(signal.SIGINT)
            assert released.wait(60)

    with pytest.raises(KeyboardInterrupt):
        run(wait)
    assert seen == ["ended", "handler"]


def test_what_a_handler_raises_in_the_moment_in_which_the_work_ends_is_raised_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            super().get(block, timeout)
            raise KeyboardInterrupt  # As a handler does that comes right after it.

    monkeypatch.setattr(undisturbed, "SimpleQueue", Interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(lambda: None)
    assert time.monotonic() - began < undisturbed.INTERRUPTED_END_S / 2


def test_where_no_thread_can_be_had_handlers_are_put_off_instead(
    monkeypatch: pytest.MonkeyPatch, install: Callable[[int, Handler], Handler]
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(undisturbed._thread, "start_new_thread", refuse)
    seen: list[str] = []
    install(signal.SIGUSR1, lambda *_: seen.append("handler"))

    def work() -> int:
        send(signal.SIGUSR1)
        seen.append("work")
        return 7

    assert run(work) == 7
    assert seen == ["work", "handler"]


def test_signals_that_come_while_another_one_is_noted_are_noted_as_well(
    install: Callable[[int, Handler], Handler],
) -> None:
    seen: list[str] = []
    sent: list[int] = []
    install(signal.SIGUSR1, lambda *_: seen.append("first"))
    install(signal.SIGUSR2, lambda *_: seen.append("on top"))

    class Noted(int):
        """As the number of a signal that waits already: another one comes while they are looked through."""

        __hash__ = int.__hash__

        def __ne__(self, other: object) -> bool:
            if not sent:
                sent.append(signal.SIGUSR2)
                send(signal.SIGUSR2)
            return int(self) != other

    @handlers.put_off
    def work() -> None:
        handlers._came.append((Noted(signal.SIGCHLD), None))
        handlers._came.append((int(signal.SIGCHLD), None))
        send(signal.SIGUSR1)
        seen.append("work")

    work()
    assert seen == ["work", "on top", "first"]
