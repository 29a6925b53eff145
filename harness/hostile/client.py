"""A client that behaves as badly as it can, one visit to the agent's socket after the other."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import time
from collections import Counter, deque

from async_ckpt.ipc import protocol
from harness.hostile.frames import TOO_LONG, Frames, frame

#: Ends what was said: the agent answers it after all that stood before.
_LAST = 987_654_321

#: How long an answer, or the end of a connection, is waited for, in seconds: long for any machine.
LIMIT_S = 60.0

#: Connections left open in the middle of a frame.
_LINGERING = 40

#: So many thousand answers nobody reads are more than the agent keeps.
_DEAF = 100

#: More than the agent lets in.
_CROWD = 560


#: Kinds of visits, and how often they are made.
KINDS = {"talk": 60, "intrude": 20, "exceed": 5, "attach": 12, "linger": 4, "extremes": 2, "deaf": 0.2, "crowd": 0.2}


class NoAnswer(Exception):
    """The agent neither answered nor ended the connection."""


class Intruder:
    """Visits the socket at ``path``.

    Parameters
    ----------
    frames : Frames
        What it says.
    fds : list of int
        What it attaches.

    ``sent`` counts frames that the agent has read for sure: it answered what came after them, or ended the connection
    because of them. ``visits`` counts by kind.
    """

    def __init__(self, path: str, frames: Frames, fds: list[int], random_: random.Random) -> None:
        self._path, self._frames, self._fds, self._random = path, frames, fds, random_
        self._lingering: deque[socket.socket] = deque()
        self.sent = self.answers = 0
        self.visits: Counter[str] = Counter()

    def visit(self, kind: str = "", talk: int = 300) -> None:
        """One visit, of some kind (``KINDS``) if none is given; ``talk``: how many frames a long one has.

        Raises
        ------
        NoAnswer
            The agent hangs.
        OSError
            Nobody is there.
        """
        kind = kind or self._random.choices(list(KINDS), list(KINDS.values()))[0]
        self.visits[kind] += 1
        self.sent += getattr(self, f"_{kind}")(talk)

    def close(self) -> None:
        """Leave, in the middle of what is being said."""
        for sock in self._lingering:
            sock.close()
        self._lingering.clear()

    # -- kinds of visits -------------------------------------------------------------------------------------------

    def _talk(self, count: int) -> int:
        """Many messages in one go, and then a bad end."""
        said = [self._frames.message() for _ in range(self._random.randrange(1, 2 * count))]
        with self._connect() as sock:
            if not self._say(sock, [self._frames.hello(), *said]):
                return 1
            self._end(sock)
        return len(said) + 2

    def _intrude(self, _: int) -> int:
        """No greeting."""
        with self._connect() as sock:
            first = self._random.choice((self._frames.message, self._frames.ending))() + TOO_LONG
            self._put(sock, first)
            self._read_to_end(sock)
        return 1

    def _exceed(self, _: int) -> int:
        """A frame that is too long: it must not be waited for."""
        with self._connect() as sock:
            self._put(sock, self._frames.hello() + TOO_LONG + b"{")
            self._read_to_end(sock, silent=True)
        return 2

    def _attach(self, _: int) -> int:
        """Descriptors of all kinds; at last, some with a frame that nobody takes them out of."""
        count = self._random.randrange(1, 20)
        with self._connect() as sock:
            self._put(sock, self._frames.hello())
            for number in range(count):
                data, fds = self._frames.with_descriptors()
                if not self._put(sock, data, self._random.choices(self._fds, k=fds)):
                    return number + 1
            taken = json.dumps({"op": "admit", "id": "?", "guard": ["a", "b"], "fds": 2}).encode()
            self._put(sock, frame(taken) + self._frames.ending() + TOO_LONG, self._random.choices(self._fds, k=5))
            self._read_to_end(sock)
        return count + 2

    def _linger(self, _: int) -> int:
        """Half a frame, and silence."""
        sock = self._connect()
        self._put(sock, self._frames.hello() + self._frames.message()[:-1], self._random.choices(self._fds, k=2))
        self._lingering.append(sock)
        if len(self._lingering) > _LINGERING:
            self._lingering.popleft().close()
        return 1

    def _extremes(self, talk: int) -> int:
        """Long and deep ones: many of them end the connection."""
        for _ in range(talk // 30 + 1):
            said = self._random.choice((self._frames.deep, self._frames.long))()
            with self._connect() as sock:
                self._say(sock, [self._frames.hello(), said])
        return 2 * (talk // 30 + 1)

    def _deaf(self, _: int) -> int:
        """Nobody reads what the agent has to say."""
        questions = frame(b'{"op":"status","seq":1}') * 1000
        with self._connect() as sock:
            self._put(sock, self._frames.hello())
            for number in range(_DEAF):
                if not self._put(sock, questions):
                    return 1000 * number
        raise NoAnswer("The agent keeps answers for somebody who does not read them, without a limit")

    def _crowd(self, _: int) -> int:
        """More connections than there is room for."""
        with contextlib.ExitStack() as stack:
            for _ in range(_CROWD):
                with contextlib.suppress(OSError):
                    self._put(stack.enter_context(self._connect()), b"\0\0\0")
        return 0

    # -- words -----------------------------------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                return protocol.connect(self._path, LIMIT_S)
            except BlockingIOError:  # A crowd stands before the door; no event tells when it is gone.
                if time.monotonic() > until:
                    raise NoAnswer("The agent lets nobody in") from None
                time.sleep(0.01)

    def _put(self, sock: socket.socket, data: bytes, fds: list[int] | None = None) -> bool:
        """False: the agent has ended the connection."""
        try:
            sent = protocol.send(sock, data, fds or [])
            sock.sendall(data[sent:])
            return True
        except TimeoutError:
            raise NoAnswer("The agent does not read") from None
        except OSError:
            return False

    def _say(self, sock: socket.socket, said: list[bytes]) -> bool:
        """Say all, and wait until it was understood; False where the agent ended the connection instead."""
        last = frame(json.dumps({"op": "state", "id": "", "seq": _LAST}).encode())
        if not self._put(sock, b"".join(said) + last):
            return False
        tail, wanted = b"", f'"seq":{_LAST}'.encode()
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            data = self._receive(sock)
            if not data:
                return False
            self.answers += data.count(b'"seq":')
            tail = tail[-len(wanted) :] + data
            if wanted in tail:
                return True
        raise NoAnswer(f"No answer within {LIMIT_S:g} s")

    def _end(self, sock: socket.socket) -> None:
        fate = self._random.randrange(4)
        if fate == 0:
            return
        if fate == 1:
            # Unread answers and an abrupt end.
            self._put(sock, self._frames.message() * 20)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        self._put(sock, self._frames.ending())
        if fate == 2:
            self._read_to_end(sock)

    def _read_to_end(self, sock: socket.socket, *, silent: bool = False) -> None:
        """Wait for the end, as it must come once all was said; ``silent``: without saying that it was."""
        if not silent:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if not self._receive(sock):
                return
        raise NoAnswer("The agent does not end the connection")

    @staticmethod
    def _receive(sock: socket.socket) -> bytes:
        try:
            return sock.recv(1 << 16)
        except TimeoutError:
            raise NoAnswer(f"Nothing came within {LIMIT_S:g} s") from None
        except OSError:
            return b""


def descriptors_of(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
