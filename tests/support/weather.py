"""A store around a store: it fails as told, and a reader or writer goes on only when told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from async_ckpt.errors import StoreError, TransientStoreError
from async_ckpt.stores.base import Capabilities, Entry, PartsLog, Progress, Source, Store, no_progress

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


class Weather(Store):
    """See the module's docstring; without a ``gate`` nothing is held."""

    def __init__(self, store: Store, sky: Sky, gate: Gate | None = None) -> None:
        self._store, self._sky, self._gate = store, sky, gate
        self.root = store.root

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # a property over a class variable
        return self._store.capabilities

    async def _call(self, function: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        if self._gate is not None:
            await self._gate.wait()
        fate = self._sky.call(writes=writes)
        result = await function()
        if fate == LOST:
            raise TransientStoreError("The store's answer was lost")
        return result

    async def put_source(
        self, key: str, source: Source, progress: Progress = no_progress, log: PartsLog | None = None
    ) -> list[int]:
        return await self._call(lambda: self._store.put_source(key, source, progress, log), writes=True)

    async def copy(self, source_key: str, key: str, size: int) -> None:
        await self._call(lambda: self._store.copy(source_key, key, size), writes=True)

    async def put_bytes(self, key: str, data: bytes) -> None:
        await self._call(lambda: self._store.put_bytes(key, data), writes=True)

    async def get_bytes(self, key: str) -> bytes:
        return await self._call(lambda: self._store.get_bytes(key))

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        return await self._call(lambda: self._store.get_tagged(key))

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        return await self._call(lambda: self._store.put_if(key, data, tag), writes=True)

    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        return await self._call(
            lambda: self._store.get_file(key, destination, size=size, crc32=crc32, progress=progress)
        )

    async def size(self, key: str) -> int:
        return await self._call(lambda: self._store.size(key))

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[Entry]:
        self._sky.call(writes=False)
        async for entry in self._store.list(prefix, beginning):
            yield entry

    async def delete(self, key: str) -> None:
        await self._call(lambda: self._store.delete(key), writes=True)

    async def aclose(self) -> None:
        await self._store.aclose()
