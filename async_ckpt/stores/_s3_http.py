"""HTTP/1.1 as bulk transfers need it: blocking, one request at a time on a connection, meant for threads.

Why not the HTTP client that is there anyway: bytes that pass through an event loop cost two to four times the CPU of
the system calls, all of it on one core and under the interpreter's lock. Here the content goes from ``pread`` to
``send`` and from ``recv_into`` to ``pwrite``, each of which lets go of that lock, so a few threads use the cores the
machine has.

It speaks what S3 answers: bodies of known length, chunked ones, and such that end with the connection. Everything that
is not as it should be is a ``ConnectionError``: the connection is of no use any more, and another try may work.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import CheckpointError

#: An answer's head, and an error's body, are at most so long.
_MAX_HEAD = 64 << 10
_MAX_LINE = 1 << 10

#: Statuses whose answers have no body.
_EMPTY = (204, 304)

_READ_BYTES = 4096

#: How long after an answer a connection is not looked at before the next request, in seconds.
_FRESH_S = 0.5


class Address(NamedTuple):
    """Where to connect; ``tls``: None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class Answer(NamedTuple):
    """Status and headers, whose names are in lower case."""

    status: int
    headers: dict[str, str]


class Closed(ConnectionError):
    """The connection ended before the first byte of an answer: a kept one that the server had given up, perhaps."""


class Wire:
    """One connection.

    Parameters
    ----------
    address : Address
        Where to.
    connect_s, stall_s : float
        Limits in seconds for connecting, and for a connection on which nothing moves.

    Raises
    ------
    OSError
        Nobody answers; every method raises it (``TimeoutError`` for a limit).
    """

    def __init__(self, address: Address, connect_s: float, stall_s: float) -> None:
        try:
            sock = socket.create_connection((address.host, address.port), timeout=connect_s)
        except OSError as error:
            reason = f"cannot connect to {address.host}:{address.port}: {error.strerror or error}"
            raise ConnectionError(reason) from error
        self._tls, self._stall_s = address.tls is not None, stall_s
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # The kernel's own time limits: Python's cost a poll for each call.
            sock.settimeout(None)
            limit = struct.pack("ll", int(stall_s), int(stall_s % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            with self._limited():
                self._sock = address.tls.wrap_socket(sock, server_hostname=address.host) if address.tls else sock
        except BaseException:
            sock.close()
            raise
        self._rest = b""  # read, and not yet asked for
        self._left: int | None = 0  # of the body: bytes; None: until the end of the connection
        self._chunked = False
        #: Whether another request may follow.
        self.reusable = True
        #: Since when it waits for another request (monotonic seconds); None until it has served one.
        self.kept_since: float | None = None

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it; the limit is for each step forward, not for the whole."""
        view = memoryview(data)
        with self._limited():
            while view:
                view = view[self._sock.send(view) :]

    def answer(self, *, body: bool = True, exact: bool = False) -> Answer:
        """Read an answer's head.

        Parameters
        ----------
        body : bool
            False after a HEAD request.
        exact : bool
            Read nothing beyond the head, where that can be had: a long body is then read straight to where it is to be,
            in whole pages, which copies several times faster.
        """
        while True:
            with self._limited():
                status, headers = self._head(exact and not self._tls)
            if status >= 200:
                break
        self.reusable = headers.get("connection", "").lower() != "close"
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        if not body or status in _EMPTY:
            self._left, self._chunked = 0, False
        elif self._chunked:
            with self._limited():
                self._left = self._chunk_size()
        elif length is not None and length.isdecimal():
            self._left = int(length)
        else:
            self._left, self.reusable = None, False
        return Answer(status, headers)

    def read_into(self, view: memoryview) -> int:
        """Fill ``view`` with the next bytes of the body; fewer only at its end."""
        with self._limited():
            return self._fill(view)

    def _fill(self, view: memoryview) -> int:
        done = 0
        while done < len(view) and self._left != 0:
            room = len(view) - done if self._left is None else min(len(view) - done, self._left)
            count = self._receive(view[done : done + room])
            if count == 0:
                if self._left is None:
                    self._left = 0
                    break
                raise ConnectionResetError(f"the answer ended {self._left} bytes before its end")
            done += count
            if self._left is not None:
                self._left -= count
                if self._left == 0 and self._chunked:
                    self._line()
                    self._left = self._chunk_size()
        return done

    def read(self, limit: int) -> bytes:
        """The whole body; ``ConnectionError`` if it is longer than ``limit`` bytes."""
        pieces: list[bytes] = []
        total = 0
        while self._left != 0:
            buffer = bytearray(min(limit + 1 - total, self._left or _MAX_HEAD))
            count = self.read_into(memoryview(buffer))
            total += count
            if total > limit:
                raise ConnectionError(f"the answer is longer than {limit} bytes")
            pieces.append(bytes(memoryview(buffer)[:count]))
        return b"".join(pieces)

    @property
    def finished(self) -> bool:
        """Whether the body was read to its end."""
        return self._left == 0

    @property
    def kept(self) -> bool:
        """Whether it has served a request before this one."""
        return self.kept_since is not None

    def is_stale(self) -> bool:
        """Whether the server has closed the connection, or said something nobody asked for, since the last answer.

        One that was used just now is taken to be good: looking costs a tenth of a small request, and a request that
        meets a closed connection is made again on another.
        """
        if self.kept_since is not None and time.monotonic() - self.kept_since < _FRESH_S:
            return bool(self._rest)
        try:
            # Below TLS: whatever lies there is a goodbye.
            socket.socket.recv(self._sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return bool(self._rest)
        except OSError:
            return True
        return True

    def abort(self) -> None:
        """From another thread: whoever waits on the connection gets an error at once."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which takes the TLS object away under the reader.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    def _receive(self, view: memoryview) -> int:
        if self._rest:
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
            return count
        return self._sock.recv_into(view)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """``TimeoutError`` where the kernel's time limit ended a call."""
        try:
            yield
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise TimeoutError(f"nothing moved for {self._stall_s:g} s") from error

    def _head(self, exact: bool) -> tuple[int, dict[str, str]]:
        """Status and headers of the next head."""
        head = self._until(b"\r\n\r\n", _MAX_HEAD, exact)
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ConnectionError(f"the answer is no HTTP: {first[:40]!r}")
        headers: dict[str, str] = {"connection": "close"} if version == "HTTP/1.0" else {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise ConnectionError(f"the answer has a bad header: {line[:40]!r}")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), headers

    def _until(self, end: bytes, limit: int, exact: bool = False) -> bytes:
        """Everything before ``end``, which is consumed as well."""
        while (found := self._rest.find(end)) < 0:
            if len(self._rest) > limit:
                raise ConnectionError(f"the answer's head is longer than {limit} bytes")
            try:
                data = self._peeked(end) if exact else self._sock.recv(_READ_BYTES)
            except (ConnectionResetError, ssl.SSLEOFError) as error:
                raise (ConnectionResetError if self._rest else Closed)(f"the connection broke: {error}") from error
            if not data:
                raise (ConnectionResetError if self._rest else Closed)("the connection was closed without an answer")
            self._rest += data
        head, self._rest = self._rest[:found], self._rest[found + len(end) :]
        return head

    def _peeked(self, end: bytes) -> bytes:
        """The next bytes, not beyond ``end``."""
        ahead = self._sock.recv(_READ_BYTES, socket.MSG_PEEK)
        found = ahead.find(end)
        return self._sock.recv(found + len(end) if found >= 0 else len(ahead)) if ahead else b""

    def _line(self) -> bytes:
        return self._until(b"\r\n", _MAX_LINE)

    def _chunk_size(self) -> int:
        line = self._line().partition(b";")[0].strip()
        try:
            size = int(line, 16)
        except ValueError:
            raise ConnectionError(f"the answer has a bad chunk: {line[:40]!r}") from None
        if size == 0:
            while self._line():  # trailers
                pass
        return size


class Pool:
    """Connections to one address that wait for their next request."""

    def __init__(self, address: Address, connect_s: float, stall_s: float) -> None:
        self.address = address
        self._connect_s, self._stall_s = connect_s, stall_s
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        self._closed = False

    @contextlib.contextmanager
    def wire(self, job: Job) -> Iterator[Wire]:
        """A connection for one request; kept for the next one if the answer was read to its end."""
        wire = self._take() or Wire(self.address, self._connect_s, self._stall_s)
        good = False
        try:
            job.begin(wire)
            yield wire
            good = wire.reusable and wire.finished
        finally:
            job.end()
            with self._lock:
                good = good and not self._closed
                if good:
                    wire.kept_since = time.monotonic()
                    self._idle.append(wire)
            if not good:
                wire.close()

    def _take(self) -> Wire | None:
        while True:
            with self._lock:
                # The last one used: it is the least likely to have been given up, and the others may time out.
                wire = self._idle.pop() if self._idle else None
            if wire is None or not wire.is_stale():
                return wire
            wire.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when its request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()


class Cancelled(CheckpointError):
    """The job was aborted; nobody waits for it."""


class Job:
    """One request in a thread, as its event loop sees it: how far it has come, and how to end it."""

    def __init__(self) -> None:
        #: Bytes of content that moved; written by the thread, read by the loop.
        self.moved = 0
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._aborted = False

    def begin(self, wire: Wire) -> None:
        with self._lock:
            if self._aborted:
                raise Cancelled("The request was aborted")
            self._wire = wire

    def end(self) -> None:
        with self._lock:
            self._wire = None

    def check(self) -> None:
        """``Cancelled`` if the job was aborted."""
        if self._aborted:
            raise Cancelled("The request was aborted")

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._wire is not None:
                self._wire.abort()
