"""Requests over aiohttp, and aiobotocore's client for those whose cost does not matter.

The client prepares its requests and understands the answers; they travel like all others (``exchange``).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import anyio
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from anyio import to_thread
from yarl import URL

from ...config import LOOK_UP_S, Config
from . import S3Settings
from .phases import PhaseTimer, Timeouts
from .settings import Exchange, Network, OpenedClient, client_params, made, merged_config
from .transport import Dropped, Incoming, SignedRequest

#: What is read ahead of a connection: enough for one turn of the loop at a gigabyte a second.
_READ_AHEAD_BYTES = 2 << 20
#: Connections after which it is looked which are closed.
_MOST_MADE = 512
#: Headers that aiohttp would add by itself.
_NOT_ADDED = ("Accept", "Content-Type", "User-Agent")


class _Connector(aiohttp.TCPConnector):  # type: ignore[misc]
    """Remembers its connections, so that none outlives it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made: dict[asyncio.WriteTransport, Any] = {}  # and their sockets

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        connection = await super().connect(*arguments, **options)
        transport = connection.transport
        if transport is not None and transport not in self._made:  # A kept one is known: this is for every request.
            if len(self._made) >= _MOST_MADE:
                self._made = {made: sock for made, sock in self._made.items() if not made.is_closing()}
            self._made[transport] = transport.get_extra_info("socket")
        return connection

    def abort(self) -> None:
        """End what is still saying goodbye: over TLS that takes an answer, which may never come."""
        for transport, sock in self._made.items():
            transport.abort()  # Does nothing to a TLS connection that was closed twice, as aiohttp does.
            with contextlib.suppress(OSError, TypeError, AttributeError):  # It is closed, or no socket of Python's.
                sock.shutdown(socket.SHUT_RDWR)


class _Pool:
    """One session of aiohttp, closed once nobody uses it who began before it was given up."""

    def __init__(self, session: aiohttp.ClientSession, connector: _Connector) -> None:
        self.session, self._connector = session, connector
        self._users, self._given_up = 0, False

    @asynccontextmanager
    async def used(self) -> AsyncIterator[aiohttp.ClientSession]:
        self._users += 1
        try:
            yield self.session
        finally:
            self._users -= 1
            if self._given_up and not self._users:
                with anyio.CancelScope(shield=True):
                    await self.close()

    def give_up(self) -> bool:
        """Whether it is to be closed now."""
        self._given_up = True
        return not self._users

    async def close(self) -> None:
        await self.session.close()
        self._connector.abort()


class _Answer:
    """See ``Incoming``."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self.readany = response.content.readany


class AioTransport:
    """See ``Transport``.

    Parameters
    ----------
    network : Network
        Certificates and proxies.
    timeouts : Timeouts
        ``connect_s`` is for name look-up, connection and handshake together.
    idle_s : float
        The greatest age of an idle connection, in seconds.
    """

    def __init__(self, network: Network, timeouts: Timeouts, idle_s: float) -> None:
        self._network, self._idle_s = network, idle_s
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s)
        self._opening = asyncio.Lock()
        self._tls: ssl.SSLContext | None = None
        self._pool: _Pool | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def send(self, request: SignedRequest, timer: PhaseTimer) -> AsyncIterator[Incoming]:
        proxy, body = self._network.proxy(request.url), request.body
        tls = request.url.startswith("https:") or (proxy or "").startswith("https:")
        pool = self._pool if self._pool and (self._tls or not tls) else await self._open(tls)
        async with pool.used() as session:
            try:
                response = await session.request(
                    request.method, URL(request.url, encoded=True), headers=request.headers,
                    data=body if body is None or isinstance(body, bytes) else body.pieces(timer),
                    allow_redirects=False, proxy=proxy,
                )  # fmt: skip
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                raise Dropped(str(error)) from error
            async with response:
                timer.answered()
                yield _Answer(response)

    async def _open(self, tls: bool) -> _Pool:
        if tls and self._tls is None:
            async with self._opening:
                if self._tls is None:
                    self._tls = await to_thread.run_sync(self._network.certificates.context)
                    self.drop_connections()  # What is there knows nothing of our certificates.
        if self._pool is None:
            connector = _Connector(
                ssl=self._tls or True, limit=0, keepalive_timeout=self._idle_s, ttl_dns_cache=LOOK_UP_S,
                resolver=aiohttp.ThreadedResolver(),
            )  # fmt: skip
            session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, auto_decompress=False, trust_env=False,
                skip_auto_headers=_NOT_ADDED, read_bufsize=_READ_AHEAD_BYTES, cookie_jar=aiohttp.DummyCookieJar(),
            )  # fmt: skip
            self._pool = _Pool(session, connector)
        return self._pool

    def drop_connections(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and pool.give_up():
            closing = asyncio.ensure_future(pool.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        self.drop_connections()
        if self._closing:
            await asyncio.wait(set(self._closing))
        await asyncio.sleep(0)  # Aborted connections end in the next turn of the loop.


class _Body:
    """An answer's body that is there already, as aiobotocore reads it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data


async def open_client(stack: AsyncExitStack, settings: S3Settings, config: Config, exchange: Exchange) -> OpenedClient:
    """Make a client in the running loop; ``stack`` closes it. See ``OpenClient``."""
    params = client_params(settings)
    params["config"] = merged_config(AioConfig, params.get("config"), config)
    session = get_session()
    with made():
        client = await stack.enter_async_context(session.create_client("s3", **params))

    async def send(request: Any, event_name: str, **_: Any) -> AioAWSResponse:
        answer = await exchange(event_name.rpartition(".")[2], request)
        return AioAWSResponse(request.url, answer.status, dict(answer.headers), _Body(answer.body))

    client.meta.events.register_first("before-send.s3", send)
    network = Network.of(client.meta.config, params, session)
    if network.proxies_config:
        raise NotImplementedError("proxies_config has settings that only botocore's own connections know")
    timeouts = Timeouts(client.meta.config.connect_timeout, client.meta.config.read_timeout, config.stall_timeout_s)
    transport = AioTransport(network, timeouts, config.idle_connection_s)
    stack.push_async_callback(transport.aclose)
    return OpenedClient(client, transport, network, timeouts)
