"""The agent's protocol: length-prefixed JSON frames over a Unix stream socket, in any language.

A frame is 4 bytes of length (big endian, at most ``MAX_FRAME``) and that many bytes of JSON: one object. A frame may
carry descriptors (SCM_RIGHTS, sent with its first byte); it then says how many in ``fds``.

The first frame of a connection is ``{"op": "hello", "v": 1, "pid": <own pid>, "seq": 1}``. Frames with ``seq`` are
answered by one frame with the same ``seq``; an answer with ``error`` means the request was refused. Frames without
``seq`` are doorbells. ``docs/protocol.md`` is the page for those who write a client.

========  =========================================================  ==============================================
op        fields                                                     answer
========  =========================================================  ==============================================
hello     v, pid, owner (bool: exit when this connection ends),      v, pid (the agent's)
          attempt (the owner's), gang_leader_pid (its parent, where that
          is the process of the gang's node 0), access (how
          the store is opened, if that does not stand in the spool),
          began (when the attempt began: seconds since the boot,
          which boot, wall time in ns)
admit     id; guard: list of paths, fds: their leased descriptors    none
state     id                                                         state, why
wait      id, timeout_s                                              state, why (not final: the time is over)
flush     timeout_s, gather_s (how long other ranks of collective    pending, pending_bytes, bytes_per_s, why (what
          saves are still waited for), again (id of one that has     holds up the oldest), failed: list of [id, why],
          failed and is to be tried again)                           failed_count
save      path, attempt, timeout_s, and what ``SaveOptions`` has      id, reference
          (``task/options.py``); all but path may be left out
room      folder (of what is to be saved), timeout_s                 full: why there is no room; empty: there is
claim     attempt, timeout_s                                         start: which start of the attempt this is (null:
                                                                     it is not known yet), why (it will not be),
                                                                     asked (whether the store is being asked)
steps     times: list of seconds, how long steps of the      none
          training took that have ended now (at most
          ``MAX_STEPS``)
deadline  seconds (until the machine goes)                           first: id of what is uploaded before all others
status                                                               as for flush, and what ``Requests._on_status``
                                                                     (``agent/requests.py``) adds
needed    keys: of checkpoints that an owner was asked about, and    none
          that its artifacts refer to
annotated nothing: a file was written to ``annotations/``            none
bye       over (false: the attempt has failed, the task has not),    none; of owners: the agent exits when all is
          keys: of checkpoints that its artifacts refer to           committed
========  =========================================================  ==============================================

The agent by itself sends ``{"push": "unguard", "id", "paths"}`` (these leases are let go, close your descriptors), and
to owners ``{"push": "committed", "id", "size", "after_s"}`` (it is in the store, so many seconds after its save),
``{"push": "failed", "id", "why", "refused"}``, ``{"push": "superseded", "id", "why"}``,
``{"push": "given up", "id", "ids", "count", "why"}`` (time is short: ``id`` goes first, these and more wait) and
``{"push": "needed", "keys"}`` (they are removed, but for those that are in its answer) and
``{"push": "notice", "why"}`` (what the user should know of the store, the agent or the
uploader; every new owner is told).
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from ..errors import ProtocolError
from ..system.forks import keep_socket_from_children

VERSION = 1

#: Longest frame in bytes, either way.
MAX_FRAME = 1 << 20

#: Most descriptors in one frame; the kernel allows 253.
MAX_FDS = 200

_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One frame.

    Raises
    ------
    ProtocolError
        The message is longer than ``MAX_FRAME``.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"A frame of {len(body)} bytes is longer than the {MAX_FRAME} allowed")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Turns received bytes and descriptors into messages; bounded by one frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: list[int]) -> list[tuple[Message, list[int]]]:
        """All messages that are complete now, each with its descriptors.

        Raises
        ------
        ProtocolError
            Too long, not a JSON object, or fewer descriptors than announced. The connection cannot be used any more.
        """
        self._buffer += data
        self._fds += fds
        messages: list[tuple[Message, list[int]]] = []
        try:
            while (body := self._next_body()) is not None:
                messages.append(self._message(body))
            if len(self._fds) > MAX_FDS:
                raise ProtocolError(f"More than {MAX_FDS} descriptors were sent without a frame that takes them")
        except ProtocolError:
            # Nobody gets the messages before the bad one either: their descriptors are ours to close.
            self._fds += [fd for _, taken in messages for fd in taken]
            raise
        return messages

    def _next_body(self) -> bytes | None:
        """Take a whole frame's content out of the buffer; None if there is none yet."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME:
            raise ProtocolError(f"A frame of {length} bytes is longer than the {MAX_FRAME} allowed")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    def _message(self, body: bytes) -> tuple[Message, list[int]]:
        try:
            message = json.loads(body)
        except RecursionError:
            raise ProtocolError("A frame is JSON that is nested too deep. Save large metadata as a file") from None
        except ValueError as error:
            raise ProtocolError(f"A frame is not JSON: {error}") from None
        if not isinstance(message, dict):
            raise ProtocolError("A frame is not a JSON object")
        count = message.get("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise ProtocolError(f"A frame announces {count!r} descriptors, {len(self._fds)} came")
        taken, self._fds = self._fds[:count], self._fds[count:]
        return message, taken

    def close(self) -> None:
        """Close descriptors that no message took."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def send(sock: socket.socket, data: bytes, fds: list[int], flags: int = 0) -> int:
    """Send bytes, with descriptors on the first of them; returns how many bytes went."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], ancillary, flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive bytes and descriptors (close-on-exec); no bytes at the end of the connection."""
    data, ancillary, _, _ = sock.recvmsg(64 << 10, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def connect(path: str, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket, whatever the length of its path.

    Raises
    ------
    OSError
        Nobody listens.
    """
    with _new_socket(path) as (sock, name):
        sock.settimeout(timeout_s)
        sock.connect(name)
    return sock


def listen(path: str) -> socket.socket:
    """Listen on a new socket at ``path``, mode 0600, replacing what is there."""
    with _new_socket(path) as (sock, name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(name)
        os.chmod(path, 0o600)
        sock.listen(128)
    return sock


@contextlib.contextmanager
def _new_socket(path: str) -> Iterator[tuple[socket.socket, str]]:
    """A socket, which is closed if something fails, and a name for its path. A name may have 107 bytes: that of a
    longer path leads through a descriptor of its directory.
    """
    sock = keep_socket_from_children(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    folder = -1
    try:
        if len(os.fsencode(path)) >= 100:
            folder = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
        yield sock, path if folder < 0 else f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    except BaseException:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
