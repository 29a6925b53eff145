"""Requests over boto3's botocore alone, each in a thread: where aiobotocore is missing or does not fit.

Like ``aiohttp_transport.py``: a client for the requests whose cost does not matter, and botocore's own HTTP session for
all the others.
Whoever is cancelled leaves a thread behind, which ends with its socket's time-out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import anyio
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config as BotoConfig
from botocore.exceptions import ConnectionClosedError, HTTPClientError, ReadTimeoutError, SSLError
from botocore.httpsession import URLLib3Session
from botocore.session import get_session
from urllib3.exceptions import HTTPError
from urllib3.exceptions import ReadTimeoutError as StreamTimeoutError

from ...config import THREADS_END_S, Config
from ...system.concurrency import in_thread
from . import S3Settings
from .answers import Answer
from .body import Body
from .phases import PhaseTimer, Timeouts
from .settings import Exchange, Network, OpenedClient, client_params, made, merged_config
from .transport import Dropped, Incoming, SignedRequest

T = TypeVar("T")

#: Bytes of an answer that are read at a time: all of them have to come before any is seen.
_READ_BYTES = 64 << 10
#: Bytes of a body that are handed over at a time: while it sends, urllib3 has the limit of a connection for each.
_SEND_BYTES = 16 << 10


class _Pieces:
    """A body as a thread reads it: piece by piece, made in the loop."""

    def __init__(self, content: Body, timer: PhaseTimer) -> None:
        self._pieces = content.pieces(timer)
        self._loop = asyncio.get_running_loop()
        self.stopped = self.begun = False
        self._rest = memoryview(b"")

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        if self.stopped or self._loop.is_closed():
            raise ConnectionAbortedError("nobody waits for this request any more")
        self.begun = True
        if not self._rest:
            self._rest = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
            if not self._rest:
                raise StopIteration
        piece, self._rest = self._rest[:_SEND_BYTES], self._rest[_SEND_BYTES:]
        return bytes(piece)

    async def _next(self) -> bytes:
        return b"" if self.stopped else await anext(self._pieces, b"")


class _Answer:
    """See ``Incoming``."""

    def __init__(self, response: Any, in_thread: Any, limit_s: float, *, empty: bool) -> None:
        self._raw, self._in_thread, self._limit_s = response.raw, in_thread, limit_s
        self.status: int = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        length = self.headers.get("content-length", "")
        self._left: int | None = None  # of the body; None: it ends where it ends
        if empty:
            self._left = 0
        elif length.isdecimal() and "transfer-encoding" not in self.headers:
            self._left = int(length)

    @property
    def is_read(self) -> bool:
        """Whether its end was seen, so that another request may follow."""
        return self._left == 0

    async def readany(self) -> bytes:
        # ``read1`` would return at once, and older releases of urllib3 have none.
        count = _READ_BYTES if self._left is None else min(_READ_BYTES, self._left)
        try:
            data: bytes = await self._in_thread(lambda: self._raw.read(count)) if count else b""
        except StreamTimeoutError as error:
            raise TimeoutError(f"the answer did not go on within {self._limit_s:g} s") from error
        except HTTPError as error:
            raise ConnectionResetError(f"the answer broke off: {error}") from error
        if self._left is not None:
            if not data and self._left:
                raise ConnectionResetError(f"the answer ended {self._left} bytes before its end")
            self._left -= len(data)
        elif not data:
            self._left = 0
        return data


class ThreadTransport:
    """See ``Transport``.

    Parameters
    ----------
    network : Network
        Certificates and proxies.
    timeouts : Timeouts
        Of the phases of a request; the answer's may be longer for some.
    idle_s : float
        How long connections may all be idle before none of them is used again.
    most : int
        Connections that are kept.
    """

    def __init__(self, network: Network, timeouts: Timeouts, idle_s: float, most: int) -> None:
        self._network, self._timeouts, self._idle_s, self._most = network, timeouts, idle_s, most
        self._sessions: dict[tuple[float, str | None], URLLib3Session] = {}
        self._checked = False
        self._under_way: set[object] = set()
        self._used = 0.0

    @asynccontextmanager
    async def send(self, request: SignedRequest, timer: PhaseTimer) -> AsyncIterator[Incoming]:
        if not self._checked and request.url.startswith("https:"):
            await in_thread(self._network.certificates.context)  # Its words are better than urllib3's.
            self._checked = True
        if time.monotonic() - self._used > self._idle_s:
            self.drop_connections()
        body = request.body
        pieces = None if body is None or isinstance(body, bytes) else _Pieces(body, timer)
        session = self._session(timer.timeouts.answer_s, self._network.proxy(request.url))
        prepared = AWSPreparedRequest(request.method, request.url, request.headers, pieces or body, True)
        try:
            response = await self._in_thread(lambda: session.send(prepared), _close)
        except ReadTimeoutError:
            raise  # An HTTPClientError that is none of those below.
        except (ConnectionClosedError, SSLError, HTTPClientError) as error:
            if isinstance(error, ConnectionClosedError) or (pieces is not None and pieces.begun):
                raise Dropped(str(error)) from error
            raise
        finally:
            self._used = time.monotonic()
            if pieces is not None:
                pieces.stopped = True
        if response.status_code < 200:
            _close(response)
            raise ConnectionResetError("an interim answer came first, and this client does not read on after it")
        empty = request.method == "HEAD" or response.status_code in (204, 304)
        answer = _Answer(response, self._in_thread, timer.timeouts.answer_s, empty=empty)
        timer.answered()
        try:
            yield answer
        finally:
            if answer.is_read:
                response.raw.read()  # Nothing is left, and only so the library knows.
                response.raw.release_conn()
            else:
                _close(response)

    def _session(self, answer_s: float, proxy: str | None) -> URLLib3Session:
        key = answer_s, proxy
        if key not in self._sessions:
            network = self._network
            self._sessions[key] = URLLib3Session(
                verify=network.certificates.verify, proxies={"http": proxy, "https": proxy} if proxy else None,
                timeout=(self._timeouts.connect_s, answer_s), max_pool_connections=self._most,
                client_cert=network.certificates.client, proxies_config=network.proxies_config,
            )  # fmt: skip
        return self._sessions[key]

    def drop_connections(self) -> None:
        for session in self._sessions.values():
            # It only forgets its pools, and what holds an error's traceback keeps their connections open.
            for manager in (session._manager, *session._proxy_managers.values()):
                for pool in map(manager.pools.get, manager.pools.keys()):
                    pool.close()
            session.close()

    async def aclose(self) -> None:
        self.drop_connections()
        # A thread that was left behind may give its connection back to a pool that is being closed.
        with anyio.move_on_after(THREADS_END_S, shield=True):
            while self._under_way:
                await anyio.sleep(THREADS_END_S / 100)
        self.drop_connections()
        self._sessions.clear()

    async def _in_thread(self, function: Callable[[], T], discard: Callable[[T], None] = lambda _: None) -> T:
        """See ``in_thread``; ``aclose`` waits for it."""
        call = object()
        self._under_way.add(call)

        def run() -> T:
            try:
                return function()
            finally:
                self._under_way.discard(call)

        return await in_thread(run, discard)


def _close(response: Any) -> None:
    """Close the connection of an answer that is not read to its end. A thread may be reading it, and ``close`` waits
    for that: so it is ended below the library, and below TLS, first.

    With a reset: a server that has more to send, and no room to send it to, would not hear of a plain end for seconds.
    """
    raw = response.raw
    sock = getattr(raw.connection, "sock", None)
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
    threading.Thread(target=raw.close, name="async_ckpt-close", daemon=True).start()


class _Call:
    """A call of a client's method in a thread, and the request that it waits for in the loop."""

    def __init__(self) -> None:
        self._asked: concurrent.futures.Future[Answer] | None = None
        self._cancelled = False

    def ask(self, exchange: Coroutine[Any, Any, Answer], loop: asyncio.AbstractEventLoop) -> Answer:
        """In the thread: have a request sent, and wait for its answer."""
        self._asked = asyncio.run_coroutine_threadsafe(exchange, loop)
        if self._cancelled:
            self._asked.cancel()
        return self._asked.result()

    def cancel(self) -> None:
        self._cancelled = True
        if self._asked is not None:
            self._asked.cancel()


_local = threading.local()


class ThreadClient:
    """A client of botocore with the methods of one of aiobotocore, as far as they are used here.

    Parameters
    ----------
    client : object
        Botocore's.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.meta = client.meta

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self._client, operation)

        async def call(**params: Any) -> Any:
            this = _Call()

            def run() -> Any:
                _local.call = this
                return method(**params)

            try:
                return await in_thread(run)
            except asyncio.CancelledError:
                this.cancel()
                raise

        return call


class _Read:
    """An answer's body that is there already, as botocore reads it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, *_: Any, **__: Any) -> list[bytes]:
        return [self._data]


async def open_client(stack: AsyncExitStack, settings: S3Settings, config: Config, exchange: Exchange) -> OpenedClient:
    """Make a client for the running loop; ``stack`` closes it. See ``OpenClient``."""
    params = client_params(settings)
    params["config"] = merged_config(BotoConfig, params.get("config"), config)
    session, loop = get_session(), asyncio.get_running_loop()

    def make() -> Any:
        with made():
            return session.create_client("s3", **params)

    client = await in_thread(make)

    def send(request: Any, event_name: str, **_: Any) -> AWSResponse:
        call: _Call = _local.call
        answer = call.ask(exchange(event_name.rpartition(".")[2], request), loop)
        return AWSResponse(request.url, answer.status, dict(answer.headers), _Read(answer.body))

    client.meta.events.register_first("before-send.s3", send)
    stack.callback(client.close)
    network = Network.of(client.meta.config, params, session)
    timeouts = Timeouts(client.meta.config.connect_timeout, client.meta.config.read_timeout, config.stall_timeout_s)
    most = config.max_parts_in_flight + config.files_in_flight
    transport = ThreadTransport(network, timeouts, config.idle_connection_s, most)
    stack.push_async_callback(transport.aclose)
    return OpenedClient(ThreadClient(client), transport, network, timeouts)
