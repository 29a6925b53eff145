"""Makes handlers of signals wait until the work that they would interrupt is done.

Python runs a handler in the main thread between any two of its instructions: with locks held, and things half done. A
handler that saves while a save is under way would wait for a lock that the very frame has which it interrupted, and one
that raises would leave a lease behind that nobody answers for. A save takes about a millisecond: so long the handlers
wait, and where it takes longer it says at which points they may come (``allow``).

Each handler is exchanged for one that makes a note, and put back afterwards. What the kernel knows of it stays as it
is: whether system calls go on after it (``signal.siginterrupt``), and who else may have taken the signal over below
Python.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # To look up the enumerations of ``signal`` takes longer than all else.
import ctypes
import functools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SIGNALS = tuple(sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))

_sigaction = ctypes.PyDLL(None).sigaction

#: Room for a ``struct sigaction``, which has less than 200 bytes everywhere; nobody looks into it here.
_ACTION_BYTES = 1024

#: Handlers that stand aside, by their signals.
_aside: dict[int, Any] = {}

#: What came meanwhile, in this order.
_came: deque[tuple[int, FrameType | None]] = deque()


class _State:
    waiting = False


def _note(number: int, frame: FrameType | None) -> None:
    """Stands in each handler's place."""
    if _State.waiting:
        # As with the kernel's signals: twice is once. ``tuple``: another one may come meanwhile, and be noted as well.
        if all(number != other for other, _ in tuple(_came)):
            _came.append((number, frame))
        return
    # A handler has interrupted the putting back of the others.
    _put_all_back()
    _call(number, frame)


@functools.cache
def _action(number: int) -> Any:
    return ctypes.create_string_buffer(_ACTION_BYTES)


def _exchange(number: int, handler: Any) -> None:
    action = _action(number)
    known = _sigaction(number, None, action) == 0
    _signal.signal(number, handler)
    if known:
        _sigaction(number, action, None)


def _put_back(number: int) -> None:
    if _signal.getsignal(number) is _note:
        _exchange(number, _aside[number])


def _call(number: int, frame: FrameType | None) -> None:
    handler = _signal.getsignal(number)
    if callable(handler):
        handler(number, frame)


def _is_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _hold() -> None:
    _State.waiting = True
    for number in _SIGNALS:
        handler = _signal.getsignal(number)
        if callable(handler) and handler is not _note:
            _aside[number] = handler
            _exchange(number, _note)


def _let() -> None:
    """Put the handlers back, and call those whose signals came. What one raises is raised when all were called."""
    try:
        if _State.waiting:
            # First: a handler that comes from here on may hold the others itself, and lets them go when it is done.
            _State.waiting = False
            _put_all_back()
    finally:
        _call_those_that_wait()


def _put_all_back() -> None:
    try:
        for number in tuple(_aside):
            _put_back(number)
    finally:
        # One that was put back came, and raised.
        if any(_signal.getsignal(number) is _note for number in tuple(_aside)):
            _put_all_back()


def _call_those_that_wait() -> None:
    try:
        while _came:
            _call(*_came.popleft())
    finally:
        if _came:  # One of them has raised.
            _call_those_that_wait()


def put_off(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: in the main thread, signals' handlers wait for the end of the function, or for its next ``allow``."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if _State.waiting or not _is_main():
            return function(*args, **kwargs)
        try:
            _hold()
            return function(*args, **kwargs)
        finally:
            _let()

    return wrapper


def allow() -> None:
    """For what may take long, where it can be interrupted: call the handlers that wait. Raises what they raise."""
    if _came and _State.waiting and _is_main():
        _let()
        _hold()


class Allowed:
    """Context: handlers come as they would, for the main thread only waits here."""

    def __enter__(self) -> None:
        self._waited = _State.waiting and _is_main()
        if self._waited:
            _let()

    def __exit__(self, *_: object) -> None:
        if self._waited:
            _hold()


def _forget_in_child() -> None:
    """Another thread may have forked, which is the main one now: nobody would put anything back there."""
    _State.waiting = False
    _came.clear()


os.register_at_fork(after_in_child=_forget_in_child)
