"""Frames and descriptors on the agent's socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_ckpt.errors import ProtocolError
from async_ckpt.ipc import protocol
from async_ckpt.ipc.protocol import Decoder

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
MESSAGES = st.dictionaries(st.text().filter(lambda key: key != "fds"), PLAIN, max_size=5)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@settings(max_examples=50, deadline=None)
@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(1, 50), min_size=1))
def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(
    messages: list[protocol.Message], cuts: list[int]
) -> None:
    data = b"".join(map(protocol.encode, messages))
    decoder, found, at, turn = Decoder(), [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        found += [message for message, fds in decoder.feed(data[at : at + step], []) if not fds]
        at, turn = at + step, turn + 1
    assert found == messages


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more_and_never_breaks_the_decoder(garbage: bytes) -> None:
    try:
        messages = Decoder().feed(garbage, [])
    except ProtocolError:
        return
    assert all(isinstance(message, dict) for message, _ in messages)


def test_names_that_are_no_text_survive() -> None:
    path = os.fsdecode(b"weights-\xff\xfe")
    ((message, _),) = Decoder().feed(protocol.encode({"guard": [path]}), [])
    assert os.fsencode(message["guard"][0]) == b"weights-\xff\xfe"


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="longer"):
        Decoder().feed(struct.pack(">I", protocol.MAX_FRAME + 1), [])


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="longer"):
        protocol.encode({"x": "y" * protocol.MAX_FRAME})


@pytest.mark.parametrize("body", [b"not json", b"[]", b"3", b'"x"', b"null", b"{", b"\xff", b"[" * 10_000])
def test_a_frame_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(struct.pack(">I", len(body)) + body, [])


@pytest.mark.parametrize("count", [1, -1, "2", 1.5, None, [0]])
def test_a_frame_that_announces_descriptors_which_did_not_come_is_refused(count: object) -> None:
    body = json.dumps({"op": "admit", "fds": count}).encode()
    with pytest.raises(ProtocolError, match="descriptors"):
        Decoder().feed(struct.pack(">I", len(body)) + body, [])


def test_descriptors_arrive_with_the_frame_that_took_them(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    ends = [os.pipe() for _ in range(3)]
    for read, write in ends:
        os.write(write, str(read).encode())
    frames = protocol.encode({"n": 1, "fds": 2}) + protocol.encode({"n": 2})
    assert protocol.send(left, frames, [read for read, _ in ends[:2]]) == len(frames)
    last = protocol.encode({"n": 3, "fds": 1})
    protocol.send(left, last, [ends[2][0]])
    decoder, found = Decoder(), []
    while len(found) < 3:
        found += decoder.feed(*protocol.receive(right))
    assert [message["n"] for message, _ in found] == [1, 2, 3]
    assert [[os.read(fd, 10) for fd in fds] for _, fds in found] == [
        [str(ends[0][0]).encode(), str(ends[1][0]).encode()], [], [str(ends[2][0]).encode()],
    ]  # fmt: skip
    for fd in [fd for _, fds in found for fd in fds] + [fd for pipe in ends for fd in pipe]:
        os.close(fd)


def test_received_descriptors_are_not_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    read, write = os.pipe()
    protocol.send(left, b"x", [read])
    _, (received,) = protocol.receive(right)
    assert not os.get_inheritable(received)
    for fd in (read, write, received):
        os.close(fd)


def test_the_most_descriptors_a_frame_may_carry_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    read, write = os.pipe()
    protocol.send(left, protocol.encode({"fds": protocol.MAX_FDS}), [read] * protocol.MAX_FDS)
    ((_, fds),) = Decoder().feed(*protocol.receive(right))
    assert len(fds) == protocol.MAX_FDS
    for fd in [*fds, read, write]:
        os.close(fd)


def test_descriptors_nobody_took_are_closed_with_the_decoder(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    read, write = os.pipe()
    before = open_descriptors()
    decoder = Decoder()
    protocol.send(left, b"\0\0", [read])
    assert decoder.feed(*protocol.receive(right)) == []
    assert len(open_descriptors()) == len(before) + 1
    decoder.close()
    assert open_descriptors() == before
    os.close(read)
    os.close(write)


def test_a_stream_of_descriptors_without_frames_is_refused() -> None:
    decoder = Decoder()
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(protocol.MAX_FDS + 1)]
    assert decoder.feed(b"\0", fds[:-1]) == []
    with pytest.raises(ProtocolError, match="descriptors"):
        decoder.feed(b"\0", fds[-1:])
    decoder.close()


@pytest.mark.parametrize("depth", [0, 12])
def test_a_socket_can_be_found_under_a_path_of_any_length(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["long-directory-name"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / "agent.sock")
    with protocol.listen(path) as listening:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with protocol.connect(path, 10) as client:
            server, _ = listening.accept()
            with server:
                client.sendall(b"x")
                assert server.recv(1) == b"x"


def test_nobody_listening_is_an_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    protocol.listen(str(tmp_path / "sock")).close()
    before = open_descriptors()
    with pytest.raises(OSError):  # noqa: PT011 - any of them
        protocol.connect(str(tmp_path / "sock"), 1)
    assert open_descriptors() == before
