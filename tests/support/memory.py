"""A store in memory that counts what it is asked, does what it is told to, and remembers multipart uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from async_ckpt.errors import IntegrityError, NotFound
from async_ckpt.stores.base import Capabilities, Entry, PartsLog, Progress, Source, no_progress

from .faulty import FaultyStore, crcs_of


class MemoryStore(FaultyStore):
    """Objects in a dict. ``before`` is called with the operation and the key, and may raise.

    Objects longer than ``part_bytes`` go in parts of that size, one after the other.
    """

    capabilities = Capabilities(copy=True, conditional_put=True, create_only=True)

    def __init__(self, part_bytes: int = 1 << 30) -> None:
        super().__init__()
        self.before: Callable[[str, str], None] = lambda operation, key: None
        self.part_bytes = part_bytes
        self.asked: list[tuple[str, str]] = []
        self.uploads = 0

    def _ask(self, operation: str, key: str) -> None:
        self.asked.append((operation, key))
        self.before(operation, key)

    def keys(self, operation: str) -> list[str]:
        """What was asked for, in order."""
        return [key for name, key in self.asked if name == operation]

    async def put_source(
        self, key: str, source: Source, progress: Progress = no_progress, log: PartsLog | None = None
    ) -> list[int]:
        data = source.pread(source.size, 0)
        if source.size > self.part_bytes and log is not None:
            if log.known is None:
                self.uploads += 1
                log.began(f"upload-{self.uploads}", self.part_bytes)
            assert log.known is not None
            for number in range(1, -(-source.size // self.part_bytes) + 1):
                if number not in log.known.parts:
                    self._ask("part", f"{key}#{number}")
                    log.sent(number, f"etag-{number}", crcs_of(data))
        else:
            self._ask("put", key)
        progress(source.size)
        self.objects[key] = data
        return crcs_of(data)

    async def copy(self, source_key: str, key: str, size: int) -> None:
        self._ask("copy", source_key)
        if source_key not in self.objects:
            raise NotFound("It is not there", where=source_key)
        if len(self.objects[source_key]) != size:
            raise IntegrityError("It has another size", where=source_key)
        self.objects[key] = self.objects[source_key]

    async def put_bytes(self, key: str, data: bytes) -> None:
        self._ask("put", key)
        self.objects[key] = data

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[Entry]:
        self._ask("list", prefix)
        async for entry in super().list(prefix, beginning):
            yield entry

    async def get_bytes(self, key: str) -> bytes:
        self._ask("get", key)
        return await super().get_bytes(key)

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        data = await self.get_bytes(key)
        return data, data.hex()

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        self._ask("put", key)
        if (self.objects[key].hex() if key in self.objects else None) != tag:
            return False
        self.objects[key] = data
        return True
