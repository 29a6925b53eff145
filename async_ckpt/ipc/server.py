"""The agent's end of the socket: accepts, checks the peer, reads frames, writes answers. Never blocks."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import struct
from collections.abc import Callable

from ..errors import ProtocolError
from ..system.forks import keep_socket_from_children
from . import protocol
from .protocol import Message

#: A connection that does not read its answers is closed when so many bytes wait for it.
MAX_BACKLOG = 8 << 20

#: Most connections at once; one more is closed at once.
MAX_CONNECTIONS = 512


class Connection:
    """One client. ``pid`` is the peer's as the kernel tells it."""

    def __init__(self, server: Server, sock: socket.socket, pid: int) -> None:
        self._server, self.sock, self.pid = server, sock, pid
        self.greeted = False
        #: It has said that it is the task's own.
        self.is_owners = False
        self._decoder = protocol.Decoder()
        self._out = bytearray()

    def send(self, message: Message) -> None:
        """Send without waiting; a peer that does not read is dropped."""
        if not self.is_open:
            return
        try:
            self._out += protocol.encode(message)
        except ProtocolError:  # What it sent us to repeat does not fit into a frame.
            self.close()
            return
        if len(self._out) > MAX_BACKLOG:
            self.close()
        else:
            self.flush()

    def flush(self) -> None:
        try:
            while self._out:
                del self._out[: self.sock.send(self._out, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            self._server.watch(self, write=True)
            return
        except OSError:
            # Nobody reads any more. What the peer sent before it died is still there, with leases: reading ends it.
            self._out.clear()
        self._server.watch(self, write=False)

    def read(self) -> None:
        """Take in what is there and hand on every complete message."""
        try:
            data, fds = protocol.receive(self.sock)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        try:
            messages = self._decoder.feed(data, fds)
        except ProtocolError as error:
            self.send({"error": str(error)})
            self.close()
            return
        for message, taken in messages:
            if self.is_open:
                self._server.handle(self, message, taken)
            else:  # One before it has ended the connection.
                for fd in taken:
                    os.close(fd)
        if not data:
            self.close()

    @property
    def is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def close(self) -> None:
        if self.is_open:
            self._server.forget(self)
            self._decoder.close()
            self.sock.close()


class Server:
    """All connections of one listening socket, driven by the agent's selector.

    Parameters
    ----------
    listening : socket.socket
        Bound and listening; closed with the server.
    selector : selectors.BaseSelector
        Calls ``key.data(mask)`` is the agent's job.
    on_message : callable
        ``(connection, message, descriptors)``; owns the descriptors.
    on_close : callable
        ``(connection)``.
    """

    def __init__(
        self,
        listening: socket.socket,
        selector: selectors.BaseSelector,
        on_message: Callable[[Connection, Message, list[int]], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self.listening, self._selector = listening, selector
        self._on_message, self._on_close = on_message, on_close
        self.connections: set[Connection] = set()
        self._paused = True
        listening.setblocking(False)
        self.resume()

    def listen_on(self, listening: socket.socket) -> None:
        """Take another socket, as the name of the one before was removed. Who knocked there already is let in."""
        while not self._paused and select.select([self.listening], [], [], 0)[0]:
            self._accept()
        if not self._paused:
            self._selector.unregister(self.listening)
        self.listening.close()
        self.listening, self._paused = listening, True
        listening.setblocking(False)
        self.resume()

    def resume(self) -> None:
        """Accept connections (again)."""
        if self._paused:
            self._paused = False
            self._selector.register(self.listening, selectors.EVENT_READ, lambda _: self._accept())

    def _accept(self) -> None:
        try:
            sock, _ = self.listening.accept()
        except OSError as error:
            # No descriptor is free: the listener is left alone until the agent's next round, or the loop would spin.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._selector.unregister(self.listening)
                self._paused = True
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid not in (os.getuid(), 0) or len(self.connections) >= MAX_CONNECTIONS:
            sock.close()
            return
        keep_socket_from_children(sock)
        sock.setblocking(False)
        connection = Connection(self, sock, pid)
        self.connections.add(connection)
        self.watch(connection, write=False)

    def watch(self, connection: Connection, *, write: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)

        def ready(mask: int) -> None:
            # What came before in this round may have ended it.
            if mask & selectors.EVENT_WRITE and connection.is_open:
                connection.flush()
            if mask & selectors.EVENT_READ and connection.is_open:
                connection.read()

        try:
            self._selector.modify(connection.sock, events, ready)
        except KeyError:
            self._selector.register(connection.sock, events, ready)

    def handle(self, connection: Connection, message: Message, fds: list[int]) -> None:
        if not connection.greeted and message.get("op") != "hello":
            for fd in fds:
                os.close(fd)
            connection.send({"seq": message.get("seq"), "error": "The first frame must be a hello"})
            connection.close()
            return
        self._on_message(connection, message, fds)

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._selector.unregister(connection.sock)
        self._on_close(connection)

    def close(self) -> None:
        for connection in list(self.connections):
            connection.close()
        if not self._paused:
            self._selector.unregister(self.listening)
        self.listening.close()
