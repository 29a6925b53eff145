"""Bounded concurrency that reports plain errors, and threads that may be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar, cast

T = TypeVar("T")


async def for_each(items: Iterable[T], limit: int, function: Callable[[T], Awaitable[None]]) -> None:
    """Run ``function`` on every item, at most ``limit`` at a time.

    Raises
    ------
    Exception
        The first error, as it is (not in a group); the others are cancelled.
    """
    import anyio  # Late: every Metaflow process imports this module, few of them wait for a store.

    items = list(items)
    left = iter(items)
    errors: list[Exception] = []

    async def work() -> None:
        for item in left:
            try:
                await function(item)
            except Exception as error:
                errors.append(error)
                group.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(limit, len(items))):
            group.start_soon(work)
    if errors:
        raise errors[0]


async def in_thread(function: Callable[[], T], discard: Callable[[T], None] = lambda _: None) -> T:
    """Call a function in a thread of its own, for calls of which nobody knows whether they ever return.

    Whoever is cancelled meanwhile leaves the thread behind, which keeps no process from ending.

    Parameters
    ----------
    discard : callable
        Gets, in the event loop, what the function returns when nobody waits for it any more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            if error is None:
                discard(cast(T, result))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception) or isinstance(raised, StopIteration):
                # A future does not take the one, and the other would end the loop: it was meant for the thread.
                error = RuntimeError(f"{type(raised).__name__}: {raised}")
        with contextlib.suppress(RuntimeError):  # A loop that has ended waits for nothing.
            loop.call_soon_threadsafe(deliver, result, error)

    try:
        threading.Thread(target=work, name="async_ckpt-call", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error  # No more threads, for now.
    return await future
