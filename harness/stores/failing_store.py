"""A store around a store: it fails as told, and a reader or writer goes on only when told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from async_ckpt.errors import StoreError, TransientStoreError
from async_ckpt.stores.base import ListedObject, Progress, Store, Wrapper, no_progress

T = TypeVar("T")

#: The store answers; cannot be reached; takes nothing.
FAIR, DOWN, REFUSING = "fair", "down", "refusing"
#: One call: is done; fails; is done and its answer lost.
DONE, FAILS, LOST = "done", "fails", "lost"


class Sky:
    """The weather of all stores of a world.

    ``now`` lasts; ``next`` is for the calls to come, one each, and counts only in fair weather.
    """

    def __init__(self) -> None:
        self.now = FAIR
        self.next: deque[str] = deque()

    @property
    def is_fair(self) -> bool:
        """Whether nothing fails."""
        return self.now == FAIR and not self.next

    def call(self, *, writes: bool) -> str:
        """What happens to a call: ``DONE`` or ``LOST``.

        Raises
        ------
        StoreError
            It fails.
        """
        if self.now == REFUSING and writes:
            raise StoreError("The store refuses: no permission")
        fate = FAILS if self.now == DOWN else self.next.popleft() if self.next and self.now == FAIR else DONE
        if fate == FAILS:
            raise TransientStoreError("The store cannot be reached")
        return fate


class Gate:
    """Holds calls; each ``let`` lets the one through that has waited longest."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Event] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def let(self) -> None:
        self._waiting[0].set()

    async def wait(self) -> None:
        event = asyncio.Event()
        self._waiting.append(event)
        try:
            await event.wait()
        finally:
            self._waiting.remove(event)


_WRITES = ("put_content", "put_bytes", "put_if", "copy", "delete")


class Weather(Wrapper):
    """See the module's docstring; without a ``gate`` nothing is held."""

    def __init__(self, store: Store, sky: Sky, gate: Gate | None = None) -> None:
        super().__init__(store)
        self._sky, self._gate = sky, gate

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        if self._gate is not None:
            await self._gate.wait()
        fate = self._sky.call(writes=operation in _WRITES)
        result = await call(progress)
        if fate == LOST:
            raise TransientStoreError("The store's answer was lost")
        return result

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        self._sky.call(writes=False)
        async for entry in super().list(prefix, beginning):
            yield entry
