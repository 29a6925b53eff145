"""obstore: Rust's object_store from Python."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from .job import IN_FLIGHT, PART_BYTES, Engine, Job


class Obstore(Engine):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        options: dict[str, Any] = {"allow_http": True, "timeout": "600s"}
        if job.ca:
            options["root_certificate"] = Path(job.ca).read_bytes()
        self._store = S3Store(
            job.bucket, endpoint=job.url, region=job.region, access_key_id=job.key, secret_access_key=job.secret,
            unsigned_payload=True, virtual_hosted_style_request=False, client_options=options,
        )  # fmt: skip
        self._limit = asyncio.Semaphore(IN_FLIGHT)

    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        async def put(path: str, key: str, size: int) -> None:
            async with self._limit:
                await obstore.put_async(self._store, key, Path(path), chunk_size=PART_BYTES, max_concurrency=IN_FLIGHT)

        run(put(*file) for file in self.job.paths(directory, prefix, sizes))

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        async def get(path: str, key: str, size: int) -> None:
            with open(path, "wb", buffering=0) as file:
                # A stream is one request; ranges side by side are faster.
                await asyncio.gather(*(fetch(file.fileno(), key, at, size) for at in range(0, size, PART_BYTES)))

        async def fetch(fd: int, key: str, offset: int, size: int) -> None:
            async with self._limit:
                if size <= PART_BYTES:
                    # Some servers answer a range that is the whole object with 200, which obstore refuses.
                    data = await (await obstore.get_async(self._store, key)).bytes_async()
                else:
                    end = min(offset + PART_BYTES, size)
                    data = await obstore.get_range_async(self._store, key, start=offset, end=end)
                os.pwrite(fd, data, offset)

        run(get(*file) for file in self.job.paths(directory, prefix, sizes))


def run(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    async def gather() -> None:
        await asyncio.gather(*calls)

    asyncio.run(gather())
