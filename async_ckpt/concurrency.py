"""Bounded concurrency that reports plain errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import anyio.abc

T = TypeVar("T")


async def for_each(items: Iterable[T], limit: int, function: Callable[[T], Awaitable[None]]) -> None:
    """Run ``function`` on every item, at most ``limit`` at a time.

    Raises
    ------
    Exception
        The first error, as it is (not in a group); the others are cancelled.
    """
    import anyio  # Late: every Metaflow process imports this module, few of them wait for a store.

    iterator = iter(items)
    errors: list[Exception] = []
    running = 0

    async def work(group: anyio.abc.TaskGroup) -> None:
        nonlocal running
        for item in iterator:
            if running < limit:  # The next one, if there is still something to do for it.
                running += 1
                group.start_soon(work, group)
            try:
                await function(item)
            except Exception as error:
                errors.append(error)
                group.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as group:
        running = 1
        group.start_soon(work, group)
    if errors:
        raise errors[0]
