"""Every snapshot strategy on every file system that can be had here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from async_ckpt import capture
from harness.filesystems import CLONING, FILESYSTEMS

from .snapshot_suite import OnFilesystem, Place, can_clone


@pytest.fixture(params=[(kind, name) for kind in FILESYSTEMS for name in capture.STRATEGIES], ids="-".join)
def place(request: pytest.FixtureRequest, on_filesystem: OnFilesystem) -> Iterator[Place]:
    kind, strategy = request.param
    base = on_filesystem(kind)
    if strategy == "reflink" and not can_clone(base):
        assert kind not in CLONING
        pytest.skip(f"the file system under {kind} cannot clone files")
    made = Place(base, strategy)
    yield made
    made.let_go()
