"""Parts that survive, and copies, over boto3's botocore in threads."""

from __future__ import annotations

import pytest

from harness.s3.servers import moto_server, rclone_server

from .s3_clients import Copying, Resuming
from .test_s3_boto3 import THREADS
from .test_s3_transfers import TestCopyOnMoto as MotoCopy
from .test_s3_transfers import TestCopyOnRclone as RcloneCopy
from .test_s3_transfers import TestResumeOnMoto as MotoResume
from .test_s3_transfers import TestResumeOnRclone as RcloneResume

__all__ = ["moto_server", "rclone_server"]


@pytest.mark.long
class TestResumeOnMotoOverThreads(Resuming, MotoResume):
    open_client = THREADS


@pytest.mark.long
class TestResumeOnRcloneOverThreads(Resuming, RcloneResume):
    open_client = THREADS


@pytest.mark.long
class TestCopyOnMotoOverThreads(Copying, MotoCopy):
    open_client = THREADS


@pytest.mark.long
class TestCopyOnRcloneOverThreads(Copying, RcloneCopy):
    open_client = THREADS
