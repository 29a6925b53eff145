"""An S3 server on raw sockets, over TCP or TLS, that misbehaves when it is told to, and writes down what it was asked.

Left alone it is ``MemoryS3`` behind HTTP/1.1. ``inject`` gets every request whose head was read and may do with the
connection whatever it likes; ``at_connect`` gets every connection before a byte was read, and before the handshake.
Each connection has a thread: a fault is written as what happens, one thing after the other.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.s3.memory_s3 import Answer, MemoryS3, Request

#: The greatest head of a request, and what a connection holds at most of what nobody read, in bytes.
_MAX_HEAD_BYTES = 64 << 10
_BUFFER_BYTES = 64 << 10
#: How long ``close`` waits for the threads.
_END_S = 10.0


class Gone(Exception):
    """The connection is over."""


@dataclass(frozen=True)
class Record:
    """One request that came in.

    Parameters
    ----------
    operation : str
        S3's name of it.
    connection : int
        Number of the connection that it came on, from 1.
    is_new : bool
        It was the first one on that connection.
    time : float
        When its head was there (``time.monotonic``).
    signed : bool
        It carried a signature.
    """

    operation: str
    target: str
    connection: int
    is_new: bool
    time: float
    signed: bool


class Connection:
    """One connection, from the server's end. Whatever ends it raises ``Gone``."""

    def __init__(self, server: FaultServer, sock: socket.socket, number: int) -> None:
        self.server, self.number = server, number
        #: Requests whose head was read.
        self.requests = 0
        self._socket = sock
        self._buffer = b""
        self.ended = threading.Event()

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands."""
        self._socket = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket.do_handshake()

    def receive(self) -> bytes:
        """What there is, at least a byte."""
        data = self._socket.recv(_BUFFER_BYTES)
        if not data:
            raise Gone
        return data

    def read_head(self) -> bytes:
        """The head of the next request."""
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise Gone
            self._buffer += self.receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.requests += 1
        return head

    def read(self, count: int) -> bytes:
        """So many bytes."""
        data = bytearray(count)
        done = min(count, len(self._buffer))
        data[:done], self._buffer = self._buffer[:done], self._buffer[done:]
        view = memoryview(data)
        while done < count:
            received = self._socket.recv_into(view[done:])
            if not received:
                raise Gone
            done += received
        return bytes(data)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)
        self.server.count_sent(len(data))

    def wait(self, seconds: float | None = None) -> None:
        """Let time pass (None: for ever); nothing is read meanwhile."""
        self._poll(select.POLLRDHUP, seconds)

    def wait_for_data(self) -> None:
        """Until something lies there that was not read."""
        if not self._buffer:
            self._poll(select.POLLIN | select.POLLRDHUP, None, until=select.POLLIN)

    def _poll(self, events: int, seconds: float | None, until: int = 0) -> None:
        poll = select.poll()
        poll.register(self._socket.fileno(), events)
        found = poll.poll(None if seconds is None else seconds * 1000)
        if found and not found[0][1] & until:
            raise Gone

    def hang(self) -> None:
        """Keep the connection open and do nothing more, until the other side goes."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        poll.register(self.server.over, select.POLLIN)
        if self._socket.fileno() not in {fd for fd, _ in poll.poll()}:
            # Behind what is not taken nobody sees an end.
            while socket.socket.recv(self._socket, _BUFFER_BYTES):
                pass
        raise Gone

    def close(self) -> None:
        """End it as one does (FIN, and over TLS ``close_notify``)."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.setblocking(False)
            with contextlib.suppress(OSError, ValueError):
                self._socket.unwrap()
        self.drop()

    def drop(self) -> None:
        """End it with a FIN, over TLS without a word."""
        self._socket.close()
        raise Gone

    def reset(self) -> None:
        """End it with a RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.drop()

    def abort(self) -> None:
        """From another thread: whatever the connection waits for ends."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def release(self) -> None:
        self._socket.close()
        self.ended.set()


class Turn:
    """One request, and what can be done with it."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection, self.request = connection, request
        self.s3 = connection.server.s3
        self._unread = int(request.headers.get("content-length", 0))

    @property
    def server(self) -> FaultServer:
        return self.connection.server

    def read_body(self) -> None:
        """Take the body, into the request."""
        count, self._unread = self._unread, 0
        if count:
            if "100-continue" in self.request.headers.get("expect", ""):
                self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request.body = self.connection.read(count)

    def answer(self) -> Answer:
        """Do what is asked for; the right answer, which is not sent."""
        self.read_body()
        return self.s3.handle(self.request)

    def raw(self, answer: Answer) -> tuple[bytes, bytes]:
        """Head and body of an answer as they go over the wire."""
        self.s3.dated(answer)
        body = b"" if self.request.method == "HEAD" or answer.status == 204 else answer.body
        return answer.head(), body

    def send(self, answer: Answer) -> None:
        """Answer, and go on with the connection unless the answer's head says otherwise."""
        self.read_body()
        head, body = self.raw(answer)
        # One segment where it is small, as servers do it.
        self.connection.send(head + body if len(body) < 1 << 16 else head)
        if len(body) >= 1 << 16:
            self.connection.send(body)
        if answer.headers.get("Connection") == "close":
            self.connection.close()

    def serve(self) -> None:
        """As it should be."""
        self.send(self.answer())


class FaultServer:
    """Serves until it is closed; use it as a context manager.

    Parameters
    ----------
    s3 : MemoryS3
        What it serves; several servers may have the same.
    tls : ssl.SSLContext or None
        Speak TLS.
    """

    def __init__(self, s3: MemoryS3, tls: ssl.SSLContext | None = None) -> None:
        self.s3, self._tls = s3, tls
        #: Whether a request was dealt with; where not, it is served.
        self.inject: Callable[[Turn], bool] = lambda turn: False
        #: Called with every new connection; ends it, or returns.
        self.at_connect: Callable[[Connection], None] = lambda connection: None
        #: Connections up to this number are from before the fault.
        self.kept = 0
        self.records: list[Record] = []
        #: What went wrong in the server itself, which never should.
        self.failures: list[BaseException] = []
        self.sent_bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self._over, self.over = socket.socketpair()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._start(self._accept)

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> list[Connection]:
        """All that there were."""
        with self._lock:
            return list(self._connections)

    def left_open(self, seconds: float) -> int:
        """How many connections neither side has ended, so many seconds from now; to be asked at the end."""
        with contextlib.suppress(OSError):  # It may be closed already.
            self._over.send(b".")
        deadline = time.monotonic() + seconds
        return sum(not connection.ended.wait(max(0.0, deadline - time.monotonic())) for connection in self.connections)

    def operations(self) -> list[str]:
        """What was asked for, in order."""
        return [record.operation for record in self.records]

    def count_sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count

    def close(self) -> None:
        """End all connections and threads; idempotent, from any thread."""
        with self._lock:
            first, self._closed = not self._closed, True
            connections, threads = list(self._connections), list(self._threads)
        if first:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.abort()
        deadline = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._over.close()
        self.over.close()

    def _start(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(target=function, name="fault server", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    sock, _ = self._listener.accept()
                except OSError:
                    return
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    if self._closed:
                        sock.close()
                        return
                    connection = Connection(self, sock, len(self._connections) + 1)
                    self._connections.append(connection)
                    self._start(lambda connection=connection: self._run(connection))  # type: ignore[misc]

    def _run(self, connection: Connection) -> None:
        try:
            self.at_connect(connection)
            if self._tls is not None:
                connection.start_tls(self._tls)
            while True:
                self._turn(connection)
        except (Gone, OSError):  # The client went, or the fault wanted it so.
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            connection.release()

    def _turn(self, connection: Connection) -> None:
        first, *lines = connection.read_head().decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request = Request(method, target, headers)
        turn = Turn(connection, request)
        is_new, signed = connection.requests == 1, "authorization" in headers
        record = Record(request.operation, target, connection.number, is_new, time.monotonic(), signed)
        with self._lock:
            self.records.append(record)
        if "transfer-encoding" in headers:
            turn.send(Answer(411, b"", {"Connection": "close"}, "Length Required"))
        if not self.inject(turn):
            turn.serve()
