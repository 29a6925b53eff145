"""Every snapshot strategy on every file system that can be had here; and what all stores share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import botocore.session
import pytest

from async_ckpt import capture
from async_ckpt.system.files import can_clone
from harness.files.filesystems import CLONING, FILESYSTEMS

from .snapshot_suite import OnFilesystem, Place


@pytest.fixture(scope="session", autouse=True)
def _one_description_of_s3() -> Iterator[None]:
    """Every test makes clients of its own, each of which would read the megabyte that describes S3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(params=[(kind, name) for kind in FILESYSTEMS for name in capture.STRATEGIES], ids="-".join)
def place(request: pytest.FixtureRequest, on_filesystem: OnFilesystem) -> Iterator[Place]:
    kind, strategy = request.param
    base = on_filesystem(kind)
    if strategy == "reflink" and not can_clone(str(base)):
        assert kind not in CLONING
        pytest.skip(f"the file system under {kind} cannot clone files")
    made = Place(base, strategy)
    yield made
    made.let_go()
