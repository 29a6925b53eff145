"""Stores in memory: one counts what it is asked, does as it is told, and remembers multipart uploads; one fails."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from async_ckpt.errors import IntegrityError, NotFound
from async_ckpt.stores.base import (
    Capabilities,
    Content,
    Earlier,
    ListedObject,
    PartsLog,
    Progress,
    Store,
    Stored,
    Wrapper,
    no_progress,
)
from harness.stores.content import crcs_of

T = TypeVar("T")


class MemoryStore(Store):
    """Objects in a dict. ``before`` is called with the operation and the key, and may raise.

    Objects longer than ``part_bytes`` go in parts of that size, one after the other.
    """

    capabilities = Capabilities(copy=True, conditional_put=True, create_only=True)

    def __init__(self, part_bytes: int = 1 << 30) -> None:
        self.root = "memory://"
        self.objects: dict[str, bytes] = {}
        #: When each was written, and what time it is; seconds since 1970.
        self.written: dict[str, float] = {}
        self.now: Callable[[], float] = time.time
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

    async def put_content(
        self, key: str, content: Content, progress: Progress = no_progress, log: PartsLog | None = None,
        earlier: Earlier | None = None,
    ) -> Stored:  # fmt: skip
        data = content.pread(content.size, 0)
        if content.size > self.part_bytes and log is not None:
            if log.known is None:
                self.uploads += 1
                log.began(f"upload-{self.uploads}", self.part_bytes)
            assert log.known is not None
            for number in range(1, -(-content.size // self.part_bytes) + 1):
                if number not in log.known.parts:
                    self._ask("part", f"{key}#{number}")
                    log.sent(number, Stored(crcs_of(data), (), f"etag-{number}"))
        else:
            self._ask("put", key)
        progress(content.size)
        self._put(key, data)
        return Stored(crcs_of(data), (), self._etag(key))

    async def copy(self, source_key: str, key: str, size: int, etag: str = "") -> str:
        self._ask("copy", source_key)
        if len(self._object(source_key)) != size:
            raise IntegrityError("It has another size", where=source_key)
        if etag not in ("", self._etag(source_key)):
            raise IntegrityError("It was replaced", where=source_key)
        self._put(key, self.objects[source_key])
        return self._etag(key)

    def _put(self, key: str, data: bytes) -> None:
        self.objects[key], self.written[key] = data, self.now()

    def _etag(self, key: str) -> str:
        return hashlib.md5(self.objects[key], usedforsecurity=False).hexdigest()

    async def put_bytes(self, key: str, data: bytes) -> None:
        self._ask("put", key)
        self._put(key, data)

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        self._ask("list", prefix)
        for key, data in list(self.objects.items()):
            if key.startswith(f"{prefix}/{beginning}"):
                yield ListedObject(key, len(data), self.written.get(key))

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        self._ask("get", key)
        data = self._object(key)
        return data, data.hex()

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        self._ask("put", key)
        if (self.objects[key].hex() if key in self.objects else None) != tag:
            return False
        self._put(key, data)
        return True

    async def get_file(self, key: str, destination: str, *, progress: Progress = no_progress, **_: Any) -> int:
        data = self._object(key)
        progress(len(data))
        with open(destination, "wb") as file:
            return file.write(data)

    async def size(self, key: str) -> int:
        return len(self._object(key))

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def aclose(self) -> None:
        pass

    def _object(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound("It is not there", where=key)
        return self.objects[key]


class FaultyStore(Wrapper):
    """A store in memory; every call first raises the next of ``faults``, if there is one left.

    Calls that report progress report a byte before they fail; ``list`` yields ``list_first`` entries.
    """

    def __init__(self, faults: Sequence[Exception] = (), *, list_first: int = 0) -> None:
        inside = MemoryStore()
        super().__init__(inside)
        self.objects = inside.objects
        self.faults = list(faults)
        self.calls: list[str] = []
        self.list_first = list_first
        self.closed = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.faults:
            raise self.faults.pop(0)

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        if self.faults:
            progress(1)
        self._call(operation)
        return await call(progress)

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        found = [entry async for entry in super().list(prefix, beginning)]
        for entry in found[: self.list_first]:
            yield entry
        self._call("list")
        for entry in found[self.list_first :]:
            yield entry

    async def aclose(self) -> None:
        self.closed += 1
