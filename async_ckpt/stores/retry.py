"""A store around a store that tries again what failed in a way that may pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from ..config import Config
from ..errors import TransientStoreError
from .attempts import GaveUp, with_retries
from .base import Capabilities, Entry, PartsLog, Progress, Source, Store, no_progress

T = TypeVar("T")


class RetryStore(Store):
    """Retries every call of ``store`` on ``TransientStoreError``, with exponential backoff and full jitter.

    Bytes that a failed attempt reported are taken back (a negative count), so that a caller's total stays right.

    Parameters
    ----------
    store : Store
        Any store; closed with this one.
    config : Config
        ``store_attempts`` (the first included) and ``store_deadline_s`` (seconds from the first failure on).

    Raises
    ------
    TransientStoreError
        From every method: the limits are used up. Says how many attempts over how long and the last reason.
    """

    def __init__(self, store: Store, config: Config) -> None:
        self._store, self._config = store, config
        self.root = store.root

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # what is probed late must be seen here too
        return self._store.capabilities

    @property
    def notice(self) -> str:
        return self._store.notice

    def url(self, key: str) -> str:
        return self._store.url(key)

    async def put_source(
        self, key: str, source: Source, progress: Progress = no_progress, log: PartsLog | None = None
    ) -> list[int]:
        return await self._try(lambda counted: self._store.put_source(key, source, counted, log), progress)

    async def copy(self, source_key: str, key: str, size: int) -> None:
        await self._try(lambda _: self._store.copy(source_key, key, size))

    async def put_bytes(self, key: str, data: bytes) -> None:
        await self._try(lambda _: self._store.put_bytes(key, data))

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        return await self._try(lambda _: self._store.get_tagged(key))

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        return await self._try(lambda _: self._store.put_if(key, data, tag))

    async def get_bytes(self, key: str) -> bytes:
        return await self._try(lambda _: self._store.get_bytes(key))

    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        return await self._try(
            lambda counted: self._store.get_file(key, destination, size=size, crc32=crc32, progress=counted), progress
        )

    async def size(self, key: str) -> int:
        return await self._try(lambda _: self._store.size(key))

    async def delete(self, key: str) -> None:
        await self._try(lambda _: self._store.delete(key))

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[Entry]:
        entries = self._store.list(prefix, beginning)

        async def first(_: Progress) -> Entry | None:
            nonlocal entries
            try:
                return await anext(entries, None)
            except TransientStoreError:
                entries = self._store.list(prefix, beginning)  # a generator that raised is finished
                raise

        # Only the beginning: after the first entry a second try would hand out some of them twice.
        entry = await self._try(first)
        try:
            while entry is not None:
                yield entry
                entry = await anext(entries, None)
        except TransientStoreError as error:
            raise GaveUp(f"{error.what} (in the middle of a listing)", where=error.where, hint=error.hint) from error

    async def aclose(self) -> None:
        await self._store.aclose()

    async def _try(self, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress) -> T:
        return await with_retries(call, self._config, progress)
