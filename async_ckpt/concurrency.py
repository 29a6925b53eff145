"""Bounded concurrency that reports plain errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import anyio

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

    async def work(scope: anyio.CancelScope) -> None:
        for item in iterator:
            try:
                await function(item)
            except Exception as error:
                errors.append(error)
                scope.cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(limit):
            group.start_soon(work, group.cancel_scope)
    if errors:
        raise errors[0]
