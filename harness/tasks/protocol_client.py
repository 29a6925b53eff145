"""A client that knows nothing but the protocol: frames over a socket, as one in another language has it."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0


class Talker:
    """A connection to the agent of a spool.

    Parameters
    ----------
    greet : bool
        Whether to say hello first.
    """

    def __init__(self, spool: str, *, greet: bool = True) -> None:
        self._sequence = 0
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PATIENCE_S)
        folder = os.open(spool, os.O_PATH)
        try:  # Whatever the length of the path.
            self.sock.connect(f"/proc/self/fd/{folder}/agent.sock")
        finally:
            os.close(folder)
        if greet:
            assert self.ask({"op": "hello", "v": 1, "pid": os.getpid()})["v"] == 1

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self.sock.sendall(struct.pack(">I", len(body)) + body)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send with a number of its own, and wait for its answer."""
        self._sequence += 1
        self.send({**message, "seq": self._sequence})
        return self.answer(self._sequence)

    def answer(self, sequence: int) -> dict[str, Any]:
        """The next answer with that number; what the agent says by itself is passed over."""
        while (message := self.receive()).get("seq") != sequence:
            assert "push" in message, message
        return message

    def answers(self, *sequences: int) -> list[dict[str, Any]]:
        """Those answers, in whatever order they come."""
        found: dict[int, dict[str, Any]] = {}
        while set(sequences) - found.keys():
            message = self.receive()
            assert "push" in message or message["seq"] in sequences, message
            found[message.get("seq", -1)] = message
        return [found[sequence] for sequence in sequences]

    def receive(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._exactly(struct.unpack(">I", self._exactly(4))[0]))
        return found

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise ConnectionError("the agent has ended the connection")
            data += piece
        return data

    def save(self, path: Path, **fields: Any) -> dict[str, Any]:
        return self.ask({"op": "save", "path": str(path), **fields})

    def close(self) -> None:
        self.sock.close()
