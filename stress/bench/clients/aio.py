"""aiobotocore as people write it: bytes bodies, everything else as it comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from aiobotocore.session import get_session

from .job import IN_FLIGHT, PART_BYTES, Engine, Measured


class Naive(Engine):
    def run(self) -> Measured:
        self._loop = asyncio.new_event_loop()
        opening = get_session().create_client("s3", **self.job.client_params())
        self._client = self._loop.run_until_complete(opening.__aenter__())
        self._limit = asyncio.Semaphore(IN_FLIGHT)
        try:
            return super().run()
        finally:
            self._loop.run_until_complete(opening.__aexit__(None, None, None))

    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._all(self._put(*file) for file in self.job.paths(directory, prefix, sizes))

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._all(self._get(*file) for file in self.job.paths(directory, prefix, sizes))

    def _all(self, calls: Iterable[Coroutine[Any, Any, None]]) -> None:
        async def gather() -> None:
            await asyncio.gather(*calls)

        self._loop.run_until_complete(gather())

    async def _put(self, path: str, key: str, size: int) -> None:
        name = {"Bucket": self.job.bucket, "Key": key}
        with open(path, "rb") as file:
            if size <= PART_BYTES:
                async with self._limit:
                    await self._client.put_object(**name, Body=file.read())
                return
            upload = (await self._client.create_multipart_upload(**name))["UploadId"]

            async def send(number: int) -> dict[str, Any]:
                async with self._limit:
                    body = os.pread(file.fileno(), PART_BYTES, (number - 1) * PART_BYTES)
                    answer = await self._client.upload_part(**name, UploadId=upload, PartNumber=number, Body=body)
                return {"PartNumber": number, "ETag": answer["ETag"]}

            parts = await asyncio.gather(*(send(number + 1) for number in range(-(-size // PART_BYTES))))
        await self._client.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": parts})

    async def _get(self, path: str, key: str, size: int) -> None:
        name = {"Bucket": self.job.bucket, "Key": key}
        with open(path, "wb") as file:

            async def fetch(offset: int) -> None:
                async with self._limit:
                    last = min(offset + PART_BYTES, size) - 1
                    ranged = {"Range": f"bytes={offset}-{last}"} if size > PART_BYTES else {}
                    answer = await self._client.get_object(**name, **ranged)
                    async with answer["Body"] as body:
                        os.pwrite(file.fileno(), await body.read(), offset)

            await asyncio.gather(*(fetch(offset) for offset in range(0, size, PART_BYTES)))
