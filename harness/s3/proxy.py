"""A proxy in front of an S3 server that does to requests what networks and busy stores do.

    with Proxy(server.url) as proxy:
        ...                                      # clients use proxy.url
        proxy.set(share=0.2, kinds=(LOST,))      # from now on; see Settings
        with proxy.outage():
            ...

It is a process of its own, and so disturbs nobody's timing. Heads pass unchanged, ``Host`` included: clients sign the
proxy's address, and a server verifies what it sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

#: Answers in place of the server's, which never sees the request.
SLOW_DOWN, TOO_MANY, INTERNAL = "503 SlowDown", "429 TooManyRequests", "500 InternalError"
#: The connection is reset: with the whole request read, and nothing of it passed on.
RESET = "reset before the answer"
#: The server got half of the body, then the connection was reset.
CUT_REQUEST = "request cut in its middle"
#: The server did what it was asked. The client gets half of the answer's body (of the head where there is none), then
#: an end of the connection that looks like an orderly one.
CUT_ANSWER = "answer cut in its middle"
#: The server did what it was asked; the connection is reset in place of the answer.
LOST = "answer lost"
KINDS = (SLOW_DOWN, TOO_MANY, INTERNAL, RESET, CUT_REQUEST, CUT_ANSWER, LOST)

#: What is counted beside the kinds: requests that were passed on whole, connections that an outage cut, and those that
#: it did not let begin.
PASSED, CUT_OFF, REFUSED = "passed", "cut off by an outage", "refused in an outage"

_ERRORS = {
    SLOW_DOWN: (b"503 Slow Down", b"SlowDown"),
    TOO_MANY: (b"429 Too Many Requests", b"TooManyRequestsException"),
    INTERNAL: (b"500 Internal Server Error", b"InternalError"),
}
_ERROR_BODY = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>The proxy says so</Message></Error>"

#: Statuses of answers without a body.
EMPTY = (204, 304)

_PIECE_BYTES = 64 << 10
#: Of a chunked body, whose length nobody knows, so much is let through before the cut: a chunk's size and a bit of it.
_CHUNKED_CUT_BYTES = 8
#: How long the server may take to notice that a connection has ended, and the proxy to do what it is told, in seconds.
_END_S, _LIMIT_S = 10.0, 60.0


@dataclass(frozen=True)
class Settings:
    """What happens to requests.

    Parameters
    ----------
    latency_s : float
        Seconds that each takes longer.
    bytes_s : float
        Bytes a second for all of them together, both ways; 0: as many as there are.
    share : float
        Which share of them fails, 0 to 1.
    kinds : sequence of str
        How they fail, one of these at random; only requests with a body are ``CUT_REQUEST``.
    only : str
        A regular expression: requests are spared in whose first line it is not found, e.g. ``"PUT .*/latest "``.
    outage : bool
        Every connection is reset, those that are open and all that begin.
    """

    latency_s: float = 0.0
    bytes_s: float = 0.0
    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    only: str = ""
    outage: bool = False


class Proxy:
    """The proxy's process, as seen by the one who started it; a context manager.

    Parameters
    ----------
    upstream : str
        The server's URL, ``http://host:port``.
    seed : int
        Of the choice which requests fail, and how.
    settings
        The first ``Settings``.
    """

    def __init__(self, upstream: str, *, seed: int = 0, **settings: Any) -> None:
        self._upstream, self._seed = upstream, seed
        self.settings = Settings(**settings)
        self._lock = threading.Lock()

    def __enter__(self) -> Proxy:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # It ends when this pair is closed: it outlives nobody.
            self._process = subprocess.Popen(
                [sys.executable, __file__, self._upstream, str(self._seed), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
            ours.settimeout(_LIMIT_S)
            self._control = ours.makefile("rw", encoding="utf-8")  # holds the socket from here on
        try:
            self.url = f"http://127.0.0.1:{self._tell()['port']}"
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._control.close()

    def set(self, **changes: Any) -> None:
        """Change some of the settings; true of all requests that begin when this has returned."""
        self.settings = replace(self.settings, **changes)
        self._tell()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """The store is out of reach while the block runs."""
        self.set(outage=True)
        try:
            yield
        finally:
            self.set(outage=False)

    def counts(self) -> Counter[str]:
        """How many requests were ``PASSED``, and met with which of ``KINDS``; connections ``CUT_OFF``, ``REFUSED``."""
        return Counter(self._tell()["counts"])

    def _tell(self) -> dict[str, Any]:
        """Send the settings; returns what the process says.

        Raises
        ------
        OSError
            It does not answer, or has ended.
        """
        with self._lock:
            self._control.write(json.dumps(asdict(self.settings)) + "\n")
            self._control.flush()
            line = self._control.readline()
        if not line:
            raise ConnectionError("the proxy has ended; its reason stands on stderr")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Head:
    """Of a request or an answer: as it came, its first line, and its fields by their names in small letters."""

    raw: bytes
    first: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def chunked(self) -> bool:
        return self.fields.get("transfer-encoding", "").lower() == "chunked"

    @property
    def length(self) -> int | None:
        """Of the body, in bytes; None where the head does not say."""
        length = self.fields.get("content-length")
        return None if self.chunked or length is None else int(length)

    @property
    def is_answer(self) -> bool:
        return self.first.startswith("HTTP/")

    @property
    def status(self) -> int:
        return int(self.first.split()[1])

    def keeps_open(self, *, empty: bool) -> bool:
        """Whether another request can follow this answer, which is known to be ``empty`` or says itself where it ends.

        A client decides by the same rule: where it goes on and the proxy closes, its next request may be lost.
        """
        ends = empty or self.chunked or self.length is not None
        return ends and self.fields.get("connection", "").lower() != "close"

    @property
    def middle(self) -> int:
        """How many bytes of the whole message are to pass where it is cut."""
        if self.chunked:
            return len(self.raw) + _CHUNKED_CUT_BYTES
        return len(self.raw) + self.length // 2 if self.length else len(self.raw) // 2


class _Server:
    """The proxy's inside, in its own process."""

    def __init__(self, upstream: str, seed: int) -> None:
        address = urlsplit(upstream)
        self._host, self._port = address.hostname, address.port
        self._random = random.Random(seed)
        self._settings = Settings()
        self._counts: Counter[str] = Counter()
        self._free_at = 0.0
        self._clients: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def run(self, control: socket.socket) -> None:
        """Serve until the other end of ``control`` is closed."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(sock=control)
        while line := await reader.readline():
            await self._change(Settings(**json.loads(line)))
            writer.write(json.dumps({"port": port, "counts": self._counts}).encode() + b"\n")

    async def _change(self, settings: Settings) -> None:
        begins = settings.outage and not self._settings.outage
        self._settings = settings
        if begins and self._clients:
            cut = dict(self._clients)
            self._counts[CUT_OFF] += len(cut)
            for task, client in cut.items():
                _reset(client)
                task.cancel()
            await asyncio.wait(cut, timeout=2 * _END_S)

    async def _connected(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._settings.outage:
            self._counts[REFUSED] += 1
            _reset(client)
            return
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = client
        try:
            while await self._serve(reader, client):
                pass
            client.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client has hung up in the middle, or the server has, or an outage has begun.
            _reset(client)
        finally:
            del self._clients[task]

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> bool:
        """One request and its answer; False: no other can follow."""
        request = await read_head(reader)
        if request is None:
            return False
        kind = self._draw(request)
        self._counts[kind or PASSED] += 1
        await asyncio.sleep(self._settings.latency_s)
        if "expect" in request.fields:
            client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind in _ERRORS or kind == RESET:
            await self._relay(message(reader, request), None)
            if kind == RESET:
                _reset(client)
                return False
            client.write(_error(kind, request))
            await client.drain()
            return True
        return await self._pass_on(reader, request, client, kind)

    def _draw(self, request: Head) -> str:
        """How this one fails; empty: it does not."""
        settings = self._settings
        kinds = [kind for kind in settings.kinds if kind != CUT_REQUEST or request.length]
        if not kinds or not re.search(settings.only, request.first) or self._random.random() >= settings.share:
            return ""
        return self._random.choice(kinds)

    async def _pass_on(
        self, reader: asyncio.StreamReader, request: Head, client: asyncio.StreamWriter, kind: str
    ) -> bool:
        """Hand a request on, on a connection of its own, and the answer back."""
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        complete = False
        try:
            if kind == CUT_REQUEST:
                await self._relay(message(reader, request), to_server, request.middle)
                return False
            await self._relay(message(reader, request), to_server)
            answer = await read_answer(from_server)
            empty = request.first.startswith("HEAD ") or answer.status in EMPTY
            cut = None if kind != CUT_ANSWER else len(answer.raw) // 2 if empty else answer.middle
            await self._relay(message(from_server, answer, empty=empty), client if kind != LOST else None, cut)
            complete = cut is None
            return not kind and answer.keeps_open(empty=empty)
        finally:
            if not complete:
                await _end(from_server, to_server)
            to_server.close()
            if kind in (CUT_REQUEST, LOST):
                _reset(client)

    async def _relay(
        self, message: AsyncIterator[bytes], writer: asyncio.StreamWriter | None, cut: int | None = None
    ) -> None:
        """Write a message, or its first ``cut`` bytes; None: only read it."""
        left = cut
        async for piece in message:
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            await self._pace(len(piece))
            if writer is not None:
                try:
                    writer.write(piece)
                    await writer.drain()
                except ConnectionError:
                    writer = None  # It wants no more: a server has its answer ready, a client is gone.
            if left == 0:
                return

    async def _pace(self, count: int) -> None:
        if self._settings.bytes_s:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._settings.bytes_s
            await asyncio.sleep(self._free_at - now)


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head; None where the connection has ended."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Head(raw, first, fields)


async def read_answer(reader: asyncio.StreamReader) -> Head:
    while (answer := await read_head(reader)) is not None:
        if answer.status >= 200:
            return answer
    raise ConnectionError("the server has closed the connection")


async def message(reader: asyncio.StreamReader, head: Head, *, empty: bool = False) -> AsyncIterator[bytes]:
    """A message as it travels, the sizes of its chunks included; ``empty``: without a body, whatever the head says."""
    yield head.raw
    if empty:
        return
    if head.chunked:
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            yield line
            async for piece in _exactly(reader, size + 2 if size else 0):
                yield piece
        while line != b"\r\n":  # trailers, and the empty line behind them
            line = await reader.readuntil(b"\r\n")
            yield line
    elif head.length is not None:
        async for piece in _exactly(reader, head.length):
            yield piece
    elif head.is_answer:  # its end is that of the connection
        while piece := await reader.read(_PIECE_BYTES):
            yield piece


async def _exactly(reader: asyncio.StreamReader, count: int) -> AsyncIterator[bytes]:
    while count:
        piece = await reader.read(min(count, _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", count)
        count -= len(piece)
        yield piece


def _error(kind: str, request: Head) -> bytes:
    status, code = _ERRORS[kind]
    body = _ERROR_BODY % code
    head = b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    return head if request.first.startswith("HEAD ") else head + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that its other end gets ``ECONNRESET``."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End a connection to the server in the middle of something, and wait until the server has noticed.

    S3 forgets half a body. A server that writes a body to its place as it comes removes it when the connection ends:
    it must not meet the client's next try.
    """
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        writer.write_eof()
        await asyncio.wait_for(_drained(reader), _END_S)


async def _drained(reader: asyncio.StreamReader) -> None:
    while await reader.read(_PIECE_BYTES):
        pass


if __name__ == "__main__":
    url, seed, fd = sys.argv[1:]
    with socket.socket(fileno=int(fd)) as channel:
        asyncio.run(_Server(url, int(seed)).run(channel))
