"""Fixtures of tests that ask a store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from async_ckpt.config import Config
from async_ckpt.stores import open_store
from async_ckpt.stores.base import Store, StoreSpec


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A local one."""
    store = open_store(StoreSpec("local", str(tmp_path / "store")), Config(local_fsync=False))
    yield store
    await store.aclose()
