"""One client in one event loop, the bulk requests beside it, and what surrounds every request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio

from ..config import Config
from ..errors import StoreError, TransientStoreError, UsageError
from ._s3_body import PIECE_BYTES
from ._s3_bulk import Bulk
from ._s3_choice import open_client as open_best
from ._s3_endpoint import learn
from ._s3_errors import asks_to_slow_down, expired, mapped
from ._s3_pace import Climber, ClimbingLane, Fixed, Lane, RoundTrips, Throttle
from ._s3_settings import OpenClient
from ._s3_threads import Threads
from .base import S3Settings, check_key

#: A request of which nothing moved for so long after the read time-out is given up; aiohttp has no limit for sending.
STALL_S = 60.0
#: Up to here a request is small.
SMALL_BYTES = PIECE_BYTES


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
    open_client : callable
        Makes the client.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    def __init__(self, root: str, settings: S3Settings, config: Config, open_client: OpenClient = open_best) -> None:
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not root.startswith("s3://") or not bucket:
            raise UsageError(
                f"{root!r} is not an S3 address", hint="Set METAFLOW_DATASTORE_SYSROOT_S3 to s3://bucket/prefix"
            )
        self.root = root.rstrip("/")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._settings, self._config, self._open = settings, config, open_client
        #: What the user should know of the client, once there is one; usually nothing.
        self.notice = ""
        self._opening = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._client: Any = None
        self._signing: Any = None
        self._forget: Callable[[], None] | None = None
        self._verify: Any = None
        self._stall_s = STALL_S
        self._bulk: Bulk | None = None
        self._bulk_known = False
        self._threads: tuple[Threads, Threads] | None = None
        self.throttle = Throttle(config.max_bandwidth_bytes_s)
        #: Requests in flight over all calls of the store, there once ``client`` returned. Small ones have a lane of
        #: their own, so that a commit, or a thousand small files, do not stand behind the parts of a big one.
        self.small: Lane
        self.large: ClimbingLane

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
        if self._client is not None:
            return self._client
        async with self._opening:
            if self._client is None:
                async with AsyncExitStack() as stack:
                    with mapped(f"Cannot make a client for {self.root}", self.root):
                        opened = await self._open(stack, self._settings, self._config)
                    self._signing, self._forget, self._verify = opened.signing, opened.forget, opened.verify
                    self.notice = opened.notice
                    self.small = Lane(Fixed(self._config.files_in_flight))
                    self.large = ClimbingLane(Climber(self._config.parts_in_flight, self._config.max_parts_in_flight))
                    self._stall_s = STALL_S + float(opened.client.meta.config.read_timeout or 0)
                    self._stack, self._client = stack.pop_all(), opened.client
            return self._client

    async def bulk(self) -> Bulk | None:
        """The bulk requests; None where everything has to go through the client. Raises as ``client``."""
        if self._bulk_known:
            return self._bulk
        client = await self.client()
        async with self._opening:
            if not self._bulk_known:
                with mapped(f"Cannot make requests for {self.root}", self.root):
                    endpoint = await learn(client, self._bucket, self._verify)
                if endpoint is not None:
                    if self._threads is None:
                        round_trips = RoundTrips(self._config.files_in_flight)
                        parts = self._config.max_parts_in_flight
                        self._threads = Threads(round_trips, self._config.files_in_flight), Threads(Fixed(parts), parts)
                        self._answered = round_trips.observe
                    self._bulk = Bulk(
                        endpoint,
                        self._signing if endpoint.signer else None,
                        small=self._threads[0],
                        large=self._threads[1],
                        throttle=self.throttle,
                        answered=self._answered,
                        checksums=self._config.checksums,
                        connect_s=float(client.meta.config.connect_timeout or STALL_S),
                        stall_s=self._stall_s,
                    )
                self._bulk_known = True
            return self._bulk

    async def moved(self) -> None:
        """The bucket is not where the bulk requests went; from the next one on they go where the client went."""
        async with self._opening:
            bulk, self._bulk, self._bulk_known = self._bulk, None, False
        if bulk is not None:
            bulk.close()

    def lane(self, size: int) -> Lane:
        """Where a request of ``size`` bytes waits for its turn."""
        return self.small if size <= SMALL_BYTES else self.large

    def count(self, moved: int, *, of: int) -> None:
        """Bytes that moved in a request of ``of`` bytes in all."""
        if of > SMALL_BYTES:
            self.large.moved(moved)

    @contextlib.contextmanager
    def mapping(self, verb: str, key: str) -> Iterator[None]:
        """Around one request that knows its own time limit (bulk): maps its errors, and learns from them.

        Raises
        ------
        StoreError
            As ``mapped``.
        """
        where = f"{self.root}/{key}"
        try:
            with mapped(f"Cannot {verb} {where}", where):
                yield
        except StoreError as error:
            if asks_to_slow_down(error.__cause__):
                self.large.slow_down()
            if self._forget is not None and expired(error.__cause__):
                self._forget()
            raise

    @contextlib.contextmanager
    def request(self, verb: str, key: str) -> Iterator[Callable[[], None]]:
        """Around one request through the client: as ``mapping``, and ends it when nothing moves. Call what it yields
        when something did.

        Raises
        ------
        StoreError
            As ``mapped``; ``TransientStoreError`` when nothing moved for ``STALL_S`` after the read time-out.
        """
        with anyio.CancelScope(deadline=anyio.current_time() + self._stall_s) as scope:

            def alive() -> None:
                scope.deadline = anyio.current_time() + self._stall_s

            with self.mapping(verb, key):
                yield alive
        if scope.cancelled_caught:
            where = f"{self.root}/{key}"
            raise TransientStoreError(
                f"Cannot {verb} {where}: nothing moved for {self._stall_s:g} s", where=where,
                hint="Check the network and the store",
            )  # fmt: skip

    async def aclose(self) -> None:
        """Close the client; the next call would make another."""
        stack, self._stack, self._client = self._stack, None, None
        await self.moved()
        for threads in self._threads or ():
            threads.close()
        self._threads = None
        if stack is not None:
            await stack.aclose()
