"""Long work that no handler of a signal interrupts between two of its instructions.

Short work puts handlers off (``handlers``). Work that waits cannot do that: a Ctrl-C has to end it. So the main thread
gives it to a thread of its own, which nothing interrupts, and only waits for it; what a handler does meanwhile is done
beside it, and the two wait for each other as threads do.
"""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from ..config import INTERRUPTED_END_S, LOOK_S
from ..errors import CheckpointError
from . import handlers

P = ParamSpec("P")
T = TypeVar("T")


class Abandoned(CheckpointError):
    """Whoever asked for this has been told something else by a signal's handler, and waits no more."""


class _Call:
    """One piece of work: what it says, and at last what it came to."""

    def __init__(self) -> None:
        #: (write, line), and as the last one (None, result).
        self.said: SimpleQueue[tuple[Callable[[str], None] | None, Any]] = SimpleQueue()
        self.error: BaseException | None = None
        self.begun = self.ended = self.abandoned = False
        #: Ends what it waits for just now; see ``ended_by``.
        self.end: Callable[[], object] | None = None

    def work(self, work: Callable[[], Any]) -> None:
        _here.call = self
        result = None
        try:
            result = work()
        except BaseException as error:
            self.error = error
        # Here, as a handler may raise in whoever has just taken the last item, before that can be noted.
        self.ended = True
        self.said.put((None, result))

    def result(self) -> Any:
        """Wait for it, and say meanwhile what it has to say."""
        while True:
            try:
                write, item = self.said.get(timeout=LOOK_S)
            except Empty:
                continue
            if write is None:
                break
            _say(write, item)
        if self.error is None:
            return item
        try:
            raise self.error
        finally:
            self.error = None  # Which refers to this frame.

    def abandon(self) -> None:
        """Have it end at the next point where it can, and see it end."""
        self.abandoned = True
        if (end := self.end) is not None:
            handlers.put_off(end)()  # It may take a lock, which another handler's work would wait for.
        with contextlib.suppress(Empty):
            while not self.ended:
                self.said.get(timeout=INTERRUPTED_END_S)


class _Here(threading.local):
    call: _Call | None = None


_here = _Here()


def run(work: Callable[[], T]) -> T:
    """Do something undisturbed; see the module's docstring. In threads other than the main one: as ever.

    An exception that a handler raises meanwhile (``KeyboardInterrupt``) is raised here once the work has ended.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return work()
    call = _Call()
    with handlers.Allowed():
        try:
            _begin(call, work)
            if not call.begun:
                return handlers.put_off(work)()
            result: T = call.result()
            return result
        except BaseException:
            if call.begun and not call.ended:
                call.abandon()
            raise


@handlers.put_off
def _begin(call: _Call, work: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # There can be no more threads, or the interpreter is about to end.
        # As light as can be: what is asked is answered within a millisecond.
        _thread.start_new_thread(contextvars.copy_context().run, (call.work, work))
        call.begun = True


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: ``run`` the function."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(lambda: function(*args, **kwargs))

    return wrapper


def go_on() -> None:
    """For what may take long, at points where it can end: see that somebody still waits for it, and let handlers come
    that were put off.

    Raises
    ------
    Abandoned
        Nobody does.
    BaseException
        Whatever a handler raises.
    """
    handlers.allow()
    if _here.call is not None and _here.call.abandoned:
        raise Abandoned("It was interrupted by a signal's handler")


@contextlib.contextmanager
def ended_by(end: Callable[[], object]) -> Iterator[None]:
    """For what waits: ``end`` is called, perhaps twice, by another thread where nobody waits for the outcome any more.
    ``go_on`` raises then.
    """
    call = _here.call
    if call is None:
        yield
        return
    before, call.end = call.end, end
    try:
        if call.abandoned:
            end()
        yield
    finally:
        call.end = before


def say(write: Callable[[str], None], line: str) -> None:
    """Have a line written by the thread that asked for the work: it may have been interrupted while it printed, and
    then no other thread could print.
    """
    if _here.call is not None:
        _here.call.said.put((write, line))
    else:
        _say(write, line)


def _say(write: Callable[[str], None], line: str) -> None:
    try:
        write(line)
    except RuntimeError:
        # A handler is at work here, and has interrupted somebody who prints ("reentrant call").
        with contextlib.suppress(OSError):
            os.write(2, f"[@checkpoint] {line}\n".encode(errors="replace"))
