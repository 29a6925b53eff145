"""An S3 server for stress programs, whose objects can be looked at as files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt.stores.base import StoreSpec

from .bench.servers import rclone, s3_environment

_BUCKET, _PREFIX = "bucket", "stress"


@contextlib.contextmanager
def s3_target(base: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[StoreSpec, Path]]:
    """rclone's server over a directory below ``base``, with its credentials in the environment.

    Yields
    ------
    (StoreSpec, Path)
        How to open it, and the folder in which its objects lie.
    """
    folder = base / "s3" / _BUCKET / _PREFIX
    folder.mkdir(parents=True)
    with rclone(str(base / "s3")) as url:
        for name, value in s3_environment(url).items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        yield StoreSpec("metaflow-s3", f"s3://{_BUCKET}/{_PREFIX}", {"client_params": {"endpoint_url": url}}), folder
