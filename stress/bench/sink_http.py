"""The HTTP/1.1 of the sink: one connection, whose bodies are thrown away as cheaply as the kernel lets us."""

from __future__ import annotations

import mmap
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

#: Linux: what is received is dropped by the kernel, without a copy.
_MSG_TRUNC = 0x20
_SCRATCH_BYTES = 1 << 20
_HEAD_BYTES = 64 << 10
#: Longer than the line before any chunk.
_LINE_BYTES = 256

_REASONS = {
    200: "OK", 204: "No Content", 206: "Partial Content", 400: "Bad Request", 404: "Not Found",
    412: "Precondition Failed", 416: "Range Not Satisfiable", 501: "Not Implemented",
}  # fmt: skip


class Closed(Exception):
    """The client hung up."""


@dataclass(frozen=True)
class Request:
    """A request's head; names of headers are in small letters."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Body:
    """What came behind a head. ``content`` is there for short ones, ``crc32`` where it was asked for."""

    size: int
    content: bytes | None
    crc32: int | None


class Pace:
    """Bytes a second that bodies may take, of one connection or of several together; 0: as many as there are."""

    def __init__(self, bytes_s: float) -> None:
        self.bytes_s = bytes_s
        self._lock = threading.Lock()
        self._due = 0.0

    def __call__(self, count: int) -> None:
        """Return when so many bytes may have passed."""
        if self.bytes_s:
            with self._lock:
                self._due = max(self._due, time.monotonic()) + count / self.bytes_s
                due = self._due
            time.sleep(max(due - time.monotonic(), 0))


class Connection:
    """One client.

    Parameters
    ----------
    sock : socket
        Plain or TLS.
    pace : Pace
        Of bodies, each way.
    """

    def __init__(self, sock: socket.socket, pace: Pace) -> None:
        self._sock, self._pace = sock, pace
        self._flags = 0 if isinstance(sock, ssl.SSLSocket) else _MSG_TRUNC
        self._have = b""
        # Whole pages: copies into them are several times faster than into a bytearray's.
        self._scratch = memoryview(mmap.mmap(-1, _SCRATCH_BYTES))

    def request(self) -> Request:
        """The next head.

        Raises
        ------
        Closed
            There is none.
        """
        method, target, _ = self._line().decode("latin-1").split(" ")
        headers = {}
        while line := self._line().decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        path, _, query = target.partition("?")
        return Request(method, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), headers)

    def body(self, request: Request, keep: int, crc32: bool) -> Body:
        """Digest what follows a head, in whatever coding.

        Parameters
        ----------
        keep : int
            Content of up to so many bytes is kept.
        crc32 : bool
            Whether to compute the digest, which costs a pass over the content.
        """
        headers = request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        coded = "aws-chunked" in headers.get("content-encoding", "").lower()
        declared = headers.get("x-amz-decoded-content-length" if coded else "content-length")
        kept = declared is None or int(declared) <= keep
        taker = _Chunks(keep if kept else 0, crc32) if coded else _Taker(keep if kept else 0, crc32)
        # Botocore uses both codings at once: Amazon's chunks inside of HTTP's, with borders of their own.
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while count := int(self._line().partition(b";")[0], 16):
                self._take(count, taker)
                self._line()
            while self._line():
                pass
        else:
            self._take(int(headers.get("content-length", 0)), taker)
        return taker.body()

    def answer(self, status: int, headers: Mapping[str, str], length: int) -> None:
        """Send a head; the content, of ``length`` bytes, is to follow."""
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        step = _SCRATCH_BYTES if self._pace.bytes_s else max(len(view), 1)
        for offset in range(0, len(view), step):
            self._sock.sendall(view[offset : offset + step])
            self._pace(len(view[offset : offset + step]))

    def _line(self) -> bytes:
        while (end := self._have.find(b"\r\n")) < 0:
            more = self._sock.recv(_HEAD_BYTES)
            if not more:
                raise Closed
            self._have += more
        line, self._have = self._have[:end], self._have[end + 2 :]
        return line

    def _take(self, count: int, taker: _Taker) -> None:
        given, self._have = self._have[:count], self._have[count:]
        taker.take(len(given), memoryview(given))
        count -= len(given)
        flags = 0 if taker.wants_content else self._flags
        while count:
            length = self._sock.recv_into(self._scratch, min(count, _SCRATCH_BYTES), flags)
            if not length:
                raise Closed
            taker.take(length, self._scratch[:length])
            count -= length
            self._pace(length)


class _Taker:
    """Counts what comes, and looks at it only where somebody wants to know."""

    def __init__(self, keep: int, crc32: bool) -> None:
        self._keep, self._kept = keep, b""
        self._crc: int | None = 0 if crc32 else None
        self._size = 0

    @property
    def wants_content(self) -> bool:
        return self._crc is not None or self._size < self._keep

    def take(self, count: int, data: memoryview) -> None:
        """``data``'s bytes mean something only if they were wanted."""
        if self._crc is not None:
            self._crc = zlib.crc32(data, self._crc)
        if self._size < self._keep:
            self._kept += data
        self._size += count

    def body(self) -> Body:
        return Body(self._size, self._kept if self._size <= self._keep else None, self._crc)


class _Chunks(_Taker):
    """Takes the content out of Amazon's chunks: ``size;signature CRLF content CRLF``, the last of size 0 with trailers
    behind it.
    """

    def __init__(self, keep: int, crc32: bool) -> None:
        super().__init__(keep, crc32)
        self._begun, self._left, self._ended = b"", 0, False

    @property
    def wants_content(self) -> bool:
        return True

    def take(self, count: int, data: memoryview) -> None:
        while data and not self._ended:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                super().take(len(piece), piece)
                continue
            # The next size stands between the end of the chunk before and that of a line; it may come in pieces.
            found = self._begun + bytes(data[:_LINE_BYTES])
            line = found.lstrip(b"\r\n")
            end = line.find(b"\n")
            if end < 0:
                self._begun, data = found, data[_LINE_BYTES:]
                continue
            data = data[len(found) - len(line) + end + 1 - len(self._begun) :]
            self._begun = b""
            self._left = int(line[:end].strip().partition(b";")[0], 16)
            self._ended = not self._left
