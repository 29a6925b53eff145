"""The agent's end of the socket, with connections that end at a bad moment."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt.ipc import protocol
from async_ckpt.ipc.protocol import Message
from async_ckpt.ipc.server import MAX_BACKLOG, Connection, Server

PIECE: Message = {"text": "x" * (protocol.MAX_FRAME - 100)}


class Loop:
    """A server that greets everybody, and tells all of them something long when one asks for it."""

    def __init__(self, path: str) -> None:
        self._path, self._selector = path, selectors.DefaultSelector()
        self.connections: list[Connection] = []
        self._server = Server(protocol.listen(path), self._selector, self._on_message, lambda connection: None)

    def _on_message(self, connection: Connection, message: Message, fds: list[int]) -> None:
        if message["op"] == "hello":
            connection.greeted = True
            self.connections.append(connection)
        for other in self.connections if message["op"] == "all" else []:
            other.send(PIECE)

    def turn(self) -> None:
        """What happened until now, in the order in which it did."""
        for key, mask in self._selector.select(1.0):
            key.data(mask)

    def client(self) -> socket.socket:
        """Somebody who was greeted."""
        sock = protocol.connect(self._path, 10)
        sock.sendall(protocol.encode({"op": "hello"}))
        known = len(self.connections)
        while len(self.connections) == known:
            self.turn()
        return sock

    def close(self) -> None:
        self._server.close()
        self._selector.close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(str(tmp_path / "agent.sock"))
    yield made
    made.close()


def test_somebody_may_be_dropped_in_the_moment_in_which_he_begins_to_read(loop: Loop) -> None:
    with loop.client() as deaf, loop.client() as other:
        for _ in range(MAX_BACKLOG // len(protocol.encode(PIECE))):
            loop.connections[0].send(PIECE)
        # One turn sees both: what is too much for the deaf one, and then that he can be written to again.
        other.sendall(protocol.encode({"op": "all"}))
        deaf.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while deaf.recv(1 << 20):
                pass
        loop.turn()
        assert [connection.sock.fileno() < 0 for connection in loop.connections] == [True, False]
