"""S3Store keeps the contract over TLS, which is how Amazon is reached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.s3.servers import S3Server, rclone_tls_server

from .s3_clients import BothClients, Copying, Resuming
from .test_s3_store import TestRclone as RcloneSuite

__all__ = ["rclone_tls_server"]


#: What of TLS is always tried is in ``test_s3_transfers.py``, against moto, and among the faults.
pytestmark = pytest.mark.long


class OnRcloneOverTls:
    @pytest.fixture(autouse=True)
    def _server(self, rclone_tls_server: tuple[S3Server, str]) -> None:
        server, certificate = rclone_tls_server
        assert server.url.startswith("https://")
        self.server = replace(server, certificate=certificate)


class TestRcloneOverTls(OnRcloneOverTls, BothClients, RcloneSuite):
    pass


class TestResumeOnRcloneOverTls(OnRcloneOverTls, BothClients, Resuming):
    pass


class TestCopyOnRcloneOverTls(OnRcloneOverTls, BothClients, Copying):
    pass
