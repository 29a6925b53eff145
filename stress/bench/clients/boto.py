"""boto3's transfer manager: as it comes, tuned, and on Amazon's C runtime (CRT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import boto3
from botocore.config import Config

from .job import IN_FLIGHT, PART_BYTES, Engine, Job


class Default(Engine):
    """One manager for all files."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._make = self.manager()

    def manager(self) -> Callable[[], Any]:
        """Makes a transfer manager."""
        from s3transfer.manager import TransferManager

        client = boto3.client("s3", **self.job.client_params())
        return lambda: TransferManager(client, boto3.s3.transfer.TransferConfig())

    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        with self._make() as manager:
            files = self.job.paths(directory, prefix, sizes)
            for future in [manager.upload(path, self.job.bucket, key) for path, key, _ in files]:
                future.result()

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        with self._make() as manager:
            files = self.job.paths(directory, prefix, sizes)
            for future in [manager.download(self.job.bucket, key, path) for path, key, _ in files]:
                future.result()


class Tuned(Default):
    def manager(self) -> Callable[[], Any]:
        from s3transfer.manager import TransferManager

        config = Config(
            max_pool_connections=IN_FLIGHT, request_checksum_calculation="when_required",
            response_checksum_validation="when_required", s3={"payload_signing_enabled": False},
        )  # fmt: skip
        client = boto3.client("s3", **self.job.client_params(), config=config)
        transfers = boto3.s3.transfer.TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=IN_FLIGHT,
            io_chunksize=1 << 20,
        )  # fmt: skip
        return lambda: TransferManager(client, transfers)


class Crt(Default):
    def manager(self) -> Callable[[], Any]:
        import botocore.session
        from s3transfer.crt import (
            BotocoreCRTCredentialsWrapper,
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        job, session = self.job, botocore.session.Session()
        session.set_credentials(job.key, job.secret)
        provider = BotocoreCRTCredentialsWrapper(session.get_credentials()).to_crt_credentials_provider()
        client = create_s3_crt_client(job.region, provider, part_size=PART_BYTES, use_ssl=job.tls, verify=job.ca)
        serializer = BotocoreCRTRequestSerializer(
            session,
            {"region_name": job.region, "endpoint_url": job.url, "config": Config(s3={"addressing_style": "path"})},
        )
        return lambda: CRTTransferManager(client, serializer)
