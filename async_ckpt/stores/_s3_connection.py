"""One client in one event loop, and what surrounds every request it makes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio

from ..config import Config
from ..errors import StoreError, TransientStoreError, UsageError
from ._s3_client import ThreadCredentials, open_client
from ._s3_errors import expired, mapped
from .base import S3Settings, check_key

#: A request of which nothing moved for so long after the read time-out is given up; aiohttp has no limit for sending.
STALL_S = 60.0


class Connection:
    """A bucket and a prefix in it, and the client that reaches them; made in the loop that first asks for it.

    Parameters
    ----------
    root : str
        ``s3://bucket/prefix``.
    settings : S3Settings
        What the client is made with.
    config : Config
        ``parts_in_flight`` and ``unsigned_payload``.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    def __init__(self, root: str, settings: S3Settings, config: Config) -> None:
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not root.startswith("s3://") or not bucket:
            raise UsageError(
                f"{root!r} is not an S3 address", hint="Set METAFLOW_DATASTORE_SYSROOT_S3 to s3://bucket/prefix"
            )
        self.root = root.rstrip("/")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._settings, self._config = settings, config
        self._opening = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._client: Any = None
        self._credentials: ThreadCredentials | None = None
        self._stall_s = STALL_S
        #: Transfers in flight over all calls of the store; there once ``client`` returned.
        self.limiter: anyio.CapacityLimiter

    def name(self, key: str) -> dict[str, str]:
        """The parameters that name the object of a key."""
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def key(self, name: str) -> str:
        """The key of an object, from its name in the bucket."""
        return name.removeprefix(self._prefix)

    async def client(self) -> Any:
        """The client.

        Raises
        ------
        StoreError
            It cannot be made: a wrong endpoint, no credentials, no region.
        """
        async with self._opening:
            if self._client is None:
                async with AsyncExitStack() as stack:
                    with mapped(f"Cannot make a client for {self.root}", self.root):
                        client, self._credentials = await open_client(stack, self._settings, self._config)
                    self.limiter = anyio.CapacityLimiter(self._config.parts_in_flight or 1)
                    self._stall_s = STALL_S + float(client.meta.config.read_timeout or 0)
                    self._stack, self._client = stack.pop_all(), client
            return self._client

    @contextlib.contextmanager
    def request(self, verb: str, key: str) -> Iterator[Callable[[], None]]:
        """Around one request: maps its errors, and ends it when nothing moves. Call what it yields when something did.

        Raises
        ------
        StoreError
            As ``mapped``; ``TransientStoreError`` when nothing moved for ``STALL_S`` after the read time-out.
        """
        where = f"{self.root}/{key}"
        what = f"Cannot {verb} {where}"
        with anyio.CancelScope(deadline=anyio.current_time() + self._stall_s) as scope:

            def alive() -> None:
                scope.deadline = anyio.current_time() + self._stall_s

            try:
                with mapped(what, where):
                    yield alive
            except StoreError as error:
                if self._credentials is not None and expired(error.__cause__):
                    self._credentials.forget()
                raise
        if scope.cancelled_caught:
            raise TransientStoreError(
                f"{what}: nothing moved for {self._stall_s:g} s", where=where, hint="Check the network and the store"
            )

    async def aclose(self) -> None:
        """Close the client; the next call would make another."""
        stack, self._stack, self._client = self._stack, None, None
        if stack is not None:
            await stack.aclose()
