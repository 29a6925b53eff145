"""The store of this project, used as ``agent.uploader`` and ``restore`` use it, digests included."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Awaitable, Callable, Mapping

from anyio.from_thread import BlockingPortal, start_blocking_portal

from async_ckpt.capture.content import CapturedFile
from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.stores import open_store
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.concurrency import for_each

from .. import pattern
from .job import Engine, Job, Measured


class Ours(Engine):
    """``put_content`` and ``get_file`` of many files side by side."""

    _portal: BlockingPortal

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._config = Config.from_env()
        spec = StoreSpec("metaflow-s3", f"s3://{job.bucket}", {"client_params": job.client_params()})
        self._store = open_store(spec, self._config)
        # Before anything is timed: a manifest holds them.
        self._digests = {size: digests(size) for size in set(job.sizes.values())} if job.direction == "down" else {}

    def run(self) -> Measured:
        # A loop that lives on between the warming and what is timed.
        with start_blocking_portal() as self._portal:
            try:
                return super().run()
            finally:
                self._portal.call(self._store.aclose)

    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        async def put(file: tuple[str, str, int]) -> None:
            path, key, size = file
            with contextlib.closing(CapturedFile(path, size)) as source:
                await self._store.put_content(key, source)

        self._each(directory, prefix, sizes, put)

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        async def get(file: tuple[str, str, int]) -> None:
            path, key, size = file
            await self._store.get_file(key, path, size=size, crc32=self._digests.get(size))

        self._each(directory, prefix, sizes, get)

    def _each(self, directory: str, prefix: str, sizes: Mapping[str, int], do: Callable[..., Awaitable[None]]) -> None:
        files = self.job.paths(directory, prefix, sizes)
        self._portal.call(for_each, files, self._config.files_in_flight, do)


def digests(size: int) -> list[int]:
    """What a manifest would hold of a file of the pattern."""
    whole, rest = divmod(size, CHUNK_BYTES)
    assert CHUNK_BYTES == pattern.PIECE_BYTES
    found = [_piece_crc()] * whole
    return [*found, zlib.crc32(pattern.piece()[:rest])] if rest else found


@functools.cache
def _piece_crc() -> int:
    return zlib.crc32(pattern.piece())
