"""Frames that no well-behaved client would send, made from a seed: for the agent's socket."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from async_ckpt.ipc import protocol

#: What the agent knows how to do, with fields that make sense. Named ids and files are put in later.
SANE: dict[str, dict[str, Any]] = {
    "hello": {"v": protocol.VERSION, "pid": 1, "owner": False},
    "admit": {"id": "", "guard": []},
    "state": {"id": ""},
    "wait": {"id": "", "timeout_s": 0.01},
    "flush": {"timeout_s": 0.01},
    "room": {"folder": "/tmp", "timeout_s": 0.01},
    "deadline": {"seconds": 0.01},
    "status": {},
    "bye": {},
}
FIELDS = ("seq", "v", "pid", "owner", "id", "guard", "timeout_s", "folder", "seconds", "push", "")

#: Of what an ending is about: the connection is of no use afterwards.
TOO_LONG = struct.pack(">I", protocol.MAX_FRAME + 1)

_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 2**31, 2**63, -(2**63), 2**64, 10**400, -(10**4000), 1e308, -1e308,
    float("inf"), float("-inf"), float("nan"), 5e-324, "", "\0", "a\0b", "\ud800", "\udcff", "é" * 40, "\u202e", "\n",
    "'\"\\", "..", "/", "../../../../../../etc/passwd", "/etc/passwd", "/proc/self/mem", "a" * 300, "a/" * 3000,
    "%s%n{0}", [], {}, [[]], {"": None}, [None] * 50, ["a", 1, None], {"id": {"id": {}}}, "NaN", "1",
)  # fmt: skip

#: Long enough that an answer which repeats them may be too long for a frame, or so many for the connection.
_LONG: tuple[str, ...] = ("a" * 1_000_000, "é" * 400_000, "\0" * 150_000, "\ud800" * 150_000, "a/" * 400_000)


class Frames:
    """Makes frames; what it makes depends on the random numbers alone.

    Parameters
    ----------
    random_ : random.Random
        Where they come from.
    ids : sequence of str
        Checkpoints that exist: some questions are about them.
    files : sequence of str
        Names of files in them.
    """

    def __init__(self, random_: random.Random, ids: Sequence[str] = (), files: Sequence[str] = ()) -> None:
        self._random, self.ids, self.files = random_, ids, files

    def hello(self) -> bytes:
        """A greeting that is accepted."""
        hello = {"op": "hello", "v": protocol.VERSION, "seq": 1, "owner": self._random.random() < 0.1}
        return protocol.encode(hello)

    def message(self) -> bytes:
        """One object that is well formed and without descriptors: the agent has to go on after it."""
        return frame(json.dumps(self._fields()).encode())

    def ending(self) -> bytes:
        """Bytes after which the agent has to end the connection, or waits for more that never comes."""
        choose = self._random.choice
        return choose((self._garbage, self._broken, self._half, self._not_an_object, self._lie, self._other_version))()

    def deep(self) -> bytes:
        """An object nested about as deeply as a parser can follow, or a formatter cannot."""
        depth = self._random.choice((50, 400, 900, 960, 980, 990, 995, 1000, 2000, 100_000))
        opening, closing = self._random.choice((("[", "]"), ('{"a":', "}")))
        field = self._random.choice(("seq", "id", "op", "folder", "timeout_s", "x"))
        fields = {"op": self._random.choice((*SANE, "?")), "seq": 1, "id": "", "timeout_s": 0}
        rest = json.dumps({name: value for name, value in fields.items() if name != field})
        inner = "1" if opening == "[" else "{}"
        return frame(f'{{"{field}":{opening * depth}{inner}{closing * depth},{rest[1:]}'.encode())

    def long(self) -> bytes:
        """An object with one field close to the limit of a frame."""
        op = self._random.choice((*SANE, "?"))
        fields = {"op": op, "seq": 1, **SANE.get(op, {})}
        fields[self._random.choice(("op", "seq", "id", "folder"))] = self._random.choice(_LONG)
        return frame(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    def with_descriptors(self) -> tuple[bytes, int]:
        """A frame, and how many descriptors to send with it: often others than it announces."""
        count = self._random.choice((0, 1, 1, 2, 3, 20, protocol.MAX_FDS))
        guard = [self._random.choice((*self.files, "a", "", "\0", "../x")) for _ in range(count)]
        fields: dict[str, Any] = {"op": "admit", "id": self._identity(), "guard": guard, "fds": count}
        if self._random.random() < 0.3:
            fields["op"] = self._random.choice((*SANE, "?"))
        if self._random.random() < 0.2:
            fields["guard"] = self._value()
        sent = count if self._random.random() < 0.7 else self._random.choice((0, 1, count + 1, protocol.MAX_FDS))
        if self._random.random() < 0.1:
            fields["fds"] = self._random.choice((True, -1, count + 1, "1", 1.0, None, 2**64))
        return frame(json.dumps(fields).encode()), min(sent, protocol.MAX_FDS)

    # -- what they are made of -------------------------------------------------------------------------------------

    def _fields(self) -> dict[str, Any]:
        op = self._random.choice(tuple(SANE))
        fields: dict[str, Any] = {"op": op, **SANE[op]}
        if self._random.random() < 0.8:
            fields["seq"] = self._random.randrange(1000)
        if "id" in fields:
            fields["id"] = self._identity()
        if op == "hello" or self._random.random() < 0.3:
            return fields
        for name in list(fields):
            fate = self._random.random()
            if fate < 0.1:
                del fields[name]
            elif fate < 0.3:
                fields[name] = self._value()
        if self._random.random() < 0.1:
            fields[self._random.choice(FIELDS)] = self._value()
        if fields.get("op") == "hello":
            fields["v"] = protocol.VERSION
        return fields

    def _identity(self) -> Any:
        """Of a checkpoint that exists, of one that does not, or another name for a file that exists."""
        fate = self._random.random()
        if self.ids and fate < 0.3:
            return self._random.choice(self.ids)
        if self.ids and fate < 0.4:
            return self._random.choice(("./", "../ready/", "/./", "x/../")) + self._random.choice(self.ids)
        if fate < 0.6:
            return f"{self._random.randrange(3)}.mfchckpt.{self._random.randrange(10_000_000, 99_000_000)}"
        return self._value()

    def _value(self) -> Any:
        return self._random.choice(_ODD)

    def _garbage(self) -> bytes:
        return frame(self._random.randbytes(self._random.randrange(1, 200)))

    def _broken(self) -> bytes:
        """A good message with a few bytes changed. It may stay a good one: then what follows ends the connection."""
        body = bytearray(json.dumps(self._fields()).encode())
        for _ in range(self._random.randrange(1, 6)):
            place = self._random.randrange(len(body))
            if self._random.random() < 0.5:
                body[place] = self._random.randrange(256)
            else:
                del body[place : place + self._random.randrange(1, 5)]
                body = body or bytearray(b"{")
        return frame(bytes(body)) + TOO_LONG

    def _half(self) -> bytes:
        whole = self.message()
        return whole[: self._random.randrange(1, len(whole))]

    def _not_an_object(self) -> bytes:
        bodies = (b"", b"[]", b"3", b'"x"', b"null", b"{", b"\xff\xfe{\0}\0", b"[" * 100_000, b"9" * 5000, b"{}{}")
        return frame(self._random.choice(bodies))

    def _lie(self) -> bytes:
        """A length that is none, or descriptors that did not come."""
        number = self._random.randrange(protocol.MAX_FRAME + 1, 1 << 32)
        announced = json.dumps({"op": "admit", "id": "", "guard": [], "fds": self._random.choice((1, -1, "1", 1e300))})
        return self._random.choice((TOO_LONG, struct.pack(">I", number), frame(announced.encode())))

    def _other_version(self) -> bytes:
        """A greeting in another version, and questions behind it: nobody is there any more to answer them to."""
        version = self._random.choice((0, 2, None, "1", -1, 1.5, [1]))
        said: list[protocol.Message] = [
            {"op": "hello", "v": version}, {"op": "wait", "id": "?", "timeout_s": 1e300},
            {"op": "hello", "v": protocol.VERSION, "owner": True}, {"op": "status"},
        ]  # fmt: skip
        return b"".join(map(protocol.encode, said))


def frame(body: bytes) -> bytes:
    """A body with its length before it, whatever it is."""
    return struct.pack(">I", len(body)) + body


#: Ways to get a descriptor of each kind somebody may attach.
KINDS: tuple[Callable[[], list[int]], ...] = (
    lambda: list(os.pipe()),
    lambda: [os.open(os.devnull, os.O_RDWR)],
    lambda: [os.open("/", os.O_RDONLY)],
    lambda: [os.open("/", os.O_PATH)],
    lambda: [os.open("/proc/self/status", os.O_RDONLY)],
    lambda: [os.open(__file__, os.O_RDONLY)],
    lambda: [os.open(__file__, os.O_PATH)],
    lambda: [end.detach() for end in socket.socketpair()],
    lambda: [os.memfd_create("hostile")],
    lambda: [os.eventfd(0)],
    lambda: [os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)],
)


class Descriptors:
    """One or two of each kind, to attach to frames; a context manager."""

    def __enter__(self) -> list[int]:
        self._fds = [fd for make in KINDS for fd in make()]
        return self._fds

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
