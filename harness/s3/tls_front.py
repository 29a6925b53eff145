"""A front that ends TLS before an S3 server, as load balancers do, and has troubles that only such fronts have.

    with TlsFront(server.url, folder) as front:
        ...                                # clients use front.url and trust front.certificate
        front.set(idle_s=2.0)              # from now on; see Trouble

``proxy`` fails at random, over TCP; this one has one fault at a time, and each is of a kind that a client must
understand or be able to wait for. It runs in a thread. Heads pass unchanged, ``Host`` included: clients sign it, and a
server verifies what it sees. Only what concerns checkpoints is spoiled (``Trouble.concerns``): Metaflow's own client
waits a minute for an answer, and that is no affair of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from harness.s3.proxy import EMPTY, Head, message, read_answer, read_head
from harness.s3.servers import self_signed

#: What is counted: requests that were answered by the server, and what happened to others (or to their answers).
PASSED = "passed"
SILENT = "never answered"
STOPPED = "answer stopped midway"
DEAD = "sent into a connection that was dead"
REFUSED = "key refused"
WRONG_REGION = "sent to the other region"
UNCONDITIONAL = "condition refused"
MOVED = "sent to the other address"

#: Requests about checkpoints, or about the bucket itself.
_CONCERNS = r"mf\.checkpoints|^HEAD /[^/? ]+/?[? ]"
_CREDENTIAL = re.compile(r"Credential=(?P<key>[^/]+)/\d+/(?P<region>[^/]+)/")
_ERROR = "<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{}</Code><Message>{}</Message>{}</Error>"
_READ_BYTES = 256 << 10
#: A refusal waits for a body up to so large, and then the connection can go on; others are answered at once.
_SMALL_BYTES = 64 << 10
#: How long a body is thrown away that is sent although it was refused; and how long the thread may take to start or
#: end; in seconds.
_LINGER_S, _PATIENCE_S = 10.0, 30.0


@dataclass(frozen=True)
class Trouble:
    """What happens to requests.

    Parameters
    ----------
    concerns : str
        A regular expression: requests are spared in whose first line it is not found.
    silent : str
        The next request in whose first line this regular expression is found is passed on and never answered; then
        this is over. Empty: none.
    stops_every : int
        Every so many answers one stops in its middle, and the connection stays open; 0: none.
    idle_s : float
        Connections that were idle for longer are dead: still open, and what comes is not even read; 0: none.
    keys : tuple of str, or None
        Access keys that are taken; None: all.
    refusal : str
        What is said to others, in turns: codes of S3.
    region : str
        Of the bucket: who signs for another one is sent there; empty: any will do.
    region_status : int
        How: 301 (``PermanentRedirect``) or 400 (``AuthorizationHeaderMalformed``).
    conditions : int
        The status of every write that has a condition, 501 or 412; 0: the server's own.
    moved : bool
        Who comes to ``url`` is sent to ``elsewhere`` by a 307.
    """

    concerns: str = _CONCERNS
    silent: str = ""
    stops_every: int = 0
    idle_s: float = 0.0
    keys: tuple[str, ...] | None = None
    refusal: tuple[str, ...] = ("InvalidAccessKeyId", "ExpiredToken")
    region: str = ""
    region_status: int = 301
    conditions: int = 0
    moved: bool = False


_STATUSES = {
    "InvalidAccessKeyId": "403 Forbidden",
    "ExpiredToken": "400 Bad Request",
    "PermanentRedirect": "301 Moved Permanently",
    "TemporaryRedirect": "307 Temporary Redirect",
    "AuthorizationHeaderMalformed": "400 Bad Request",
    "NotImplemented": "501 Not Implemented",
    "PreconditionFailed": "412 Precondition Failed",
}


@dataclass(frozen=True)
class _Refusal:
    """An answer of the front's own, what it is counted as, and what stands in it beside the code."""

    count: str
    code: str
    why: str
    elements: str = ""
    headers: str = ""

    def answer(self, request: Head, *, closes: bool) -> bytes:
        body = _ERROR.format(self.code, self.why, self.elements).encode()
        head = f"HTTP/1.1 {_STATUSES[self.code]}\r\nContent-Type: application/xml\r\n{self.headers}"
        head += f"Content-Length: {len(body)}\r\n" + "Connection: close\r\n" * closes + "\r\n"
        return head.encode() + (b"" if request.first.startswith("HEAD ") else body)


class TlsFront:
    """The front; a context manager.

    Parameters
    ----------
    upstream : str
        The server's URL, ``http://host:port``.
    folder : Path
        Where to put the certificate and its key; made if it is missing.
    trouble
        The first ``Trouble``.
    """

    def __init__(self, upstream: str, folder: Path, **trouble: Any) -> None:
        address = urlsplit(upstream)
        self._host, self._port = address.hostname, address.port
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = folder / "front.pem", folder / "front-key.pem"
        self.trouble = Trouble(**trouble)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._answers = 0
        self._clients: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    def __enter__(self) -> TlsFront:
        self_signed(self.certificate, self._key)
        started: Future[tuple[int, int]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), name="tls-front")
        self._thread.start()
        port, other = started.result(_PATIENCE_S)
        self.url, self.elsewhere = f"https://127.0.0.1:{port}", f"https://127.0.0.1:{other}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(_PATIENCE_S)

    def set(self, **changes: Any) -> None:
        """Change some of the trouble; true of all requests that come when this has returned."""
        with self._lock:
            self.trouble = replace(self.trouble, **changes)

    def counts(self) -> Counter[str]:
        """How many requests were ``PASSED``, and met with which trouble."""
        return Counter(self._counts)

    # -- the thread ------------------------------------------------------------------------------------------------

    async def _run(self, started: Future[tuple[int, int]]) -> None:
        """Serve until it is over."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.certificate, self._key)
        front, other = [
            await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, limit=_READ_BYTES)
            for connected in (self._connected, self._connected_elsewhere)
        ]
        started.set_result((front.sockets[0].getsockname()[1], other.sockets[0].getsockname()[1]))
        await self._over.wait()
        for server in (front, other):
            server.close()
        left = dict(self._clients)
        for task, client in left.items():
            client.transport.abort()
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_PATIENCE_S)
        await asyncio.sleep(0)  # In which transports close what was aborted.

    async def _connected_elsewhere(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        await self._connected(reader, client, elsewhere=True)

    async def _connected(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, *, elsewhere: bool = False
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = client
        free_at = float("inf")  # The first request finds no idle connection.
        try:
            while (request := await read_head(reader)) is not None:
                idle_s = time.monotonic() - free_at
                if not await self._serve(reader, request, client, idle_s, elsewhere=elsewhere):
                    break
                free_at = time.monotonic()
            client.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client has hung up in the middle, or the server has, or this is over.
            client.transport.abort()
        finally:
            del self._clients[task]

    async def _serve(
        self, reader: asyncio.StreamReader, request: Head, client: asyncio.StreamWriter, idle_s: float, *,
        elsewhere: bool,
    ) -> bool:  # fmt: skip
        """One request and its answer; False: no other can follow."""
        if re.search(self.trouble.concerns, request.first) is None:
            self._counts[PASSED] += 1
            return await self._pass_on(reader, request, client)
        if 0 < self.trouble.idle_s < idle_s:
            self._counts[DEAD] += 1
            await asyncio.Event().wait()
        refusal = self._refusal(request, elsewhere=elsewhere)
        if refusal is not None:
            self._counts[refusal.count] += 1
            return await self._refuse(reader, request, client, refusal)
        return await self._pass_on(reader, request, client, self._fate(request))

    def _refusal(self, request: Head, *, elsewhere: bool) -> _Refusal | None:
        """What the front itself has to say to a request; None: nothing."""
        trouble = self.trouble
        signed = _CREDENTIAL.search(request.fields.get("authorization", ""))
        if signed is not None and trouble.keys is not None and signed["key"] not in trouble.keys:
            code = trouble.refusal[self._counts[REFUSED] % len(trouble.refusal)]
            return _Refusal(REFUSED, code, "The access key is not, or no longer, taken")
        if signed is not None and trouble.region and signed["region"] != trouble.region:
            return _wrong_region(request, signed["region"], trouble)
        if trouble.moved and not elsewhere:
            location = self.elsewhere + request.first.split()[1]
            endpoint = f"<Endpoint>{urlsplit(self.elsewhere).netloc}</Endpoint>"
            return _Refusal(MOVED, "TemporaryRedirect", "Elsewhere", endpoint, f"Location: {location}\r\n")
        writes = request.first.split()[0] in ("PUT", "POST")
        if trouble.conditions and writes and {"if-match", "if-none-match"} & request.fields.keys():
            code = "NotImplemented" if trouble.conditions == 501 else "PreconditionFailed"
            return _Refusal(UNCONDITIONAL, code, "A header you provided implies functionality that is not implemented")
        return None

    def _fate(self, request: Head) -> str:
        """What becomes of the answer to a request that is passed on."""
        with self._lock:
            if self.trouble.silent and re.search(self.trouble.silent, request.first):
                self.trouble = replace(self.trouble, silent="")
                fate = SILENT
            else:
                self._answers += 1
                every = self.trouble.stops_every
                fate = STOPPED if every and self._answers % every == 0 else PASSED
            self._counts[fate] += 1
        return fate

    async def _refuse(
        self, reader: asyncio.StreamReader, request: Head, client: asyncio.StreamWriter, refusal: _Refusal
    ) -> bool:
        """Answer for the server: at once where a large body, or a client that waits to be asked, is behind the head."""
        first = request.chunked or (request.length or 0) > _SMALL_BYTES or "expect" in request.fields
        body = message(reader, request)
        if not first:
            await _throw_away(body)
        client.write(refusal.answer(request, closes=first))
        await client.drain()
        if first:
            # A connection that is closed with something unread is reset, and then the answer may be lost.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_throw_away(body), _LINGER_S)
        return not first

    async def _pass_on(
        self, reader: asyncio.StreamReader, request: Head, client: asyncio.StreamWriter, fate: str = PASSED
    ) -> bool:
        """Hand a request on, on a connection of its own, and the answer back, as far as its fate has it."""
        if "expect" in request.fields:
            client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        from_server, to_server = await asyncio.open_connection(self._host, self._port, limit=_READ_BYTES)
        try:
            with contextlib.suppress(ConnectionError):  # It wants no more: its answer is ready.
                async for piece in message(reader, request):
                    to_server.write(piece)
                    await to_server.drain()
            answer = await read_answer(from_server)
            empty = request.first.startswith("HEAD ") or answer.status in EMPTY
            whole = len(answer.raw) + (0 if empty else answer.length or 0)
            left = {SILENT: 0, STOPPED: answer.middle if not empty else len(answer.raw) // 2}.get(fate, whole)
            async for piece in message(from_server, answer, empty=empty):
                # Bodies whose length nobody knows are let through to their end.
                client.write(piece if fate == PASSED else piece[:left])
                left = max(left - len(piece), 0)
                await client.drain()
            if fate != PASSED:
                while await reader.read(_READ_BYTES):  # Until the client has waited for long enough.
                    pass
                return False
            return answer.keeps_open(empty=empty)
        finally:
            to_server.close()


def _wrong_region(request: Head, signed_for: str, trouble: Trouble) -> _Refusal:
    where = f"x-amz-bucket-region: {trouble.region}\r\n"
    if trouble.region_status == 301:
        why = "The bucket you are attempting to access must be addressed using the specified endpoint"
        return _Refusal(WRONG_REGION, "PermanentRedirect", why, headers=where)
    why = f"The authorization header is malformed; the region '{signed_for}' is wrong; expecting '{trouble.region}'"
    # An answer to a HEAD has no body to say it in.
    where = where if request.first.startswith("HEAD ") else ""
    return _Refusal(
        WRONG_REGION, "AuthorizationHeaderMalformed", why, f"<Region>{trouble.region}</Region>", headers=where
    )


async def _throw_away(body: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async for _ in body:
            pass
