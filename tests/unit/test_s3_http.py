"""Connections for bulk transfers against servers that answer in every way HTTP allows, and in some it does not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from async_ckpt.stores._s3_http import Address, Cancelled, Closed, Job, Pool, Wire


class Script:
    """A server that sends the n-th of ``answers`` after the n-th request head; ``None`` closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1], None)
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._answers:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with sock, contextlib.suppress(OSError):
                self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        head = b""
        while self._answers:
            while b"\r\n\r\n" not in head:
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            head = head.partition(b"\r\n\r\n")[2]
            answer = self._answers.pop(0)
            if answer is None:
                return
            sock.sendall(answer)
            if b"Connection: close" in answer:
                return

    def close(self) -> None:
        self._answers.clear()
        with contextlib.suppress(OSError):
            socket.create_connection(self.address[:2], timeout=1).close()
        self._listener.close()
        self._thread.join(timeout=5)


@pytest.fixture
def serve() -> Iterator[Callable[..., Script]]:
    scripts: list[Script] = []

    def start(*answers: bytes | None) -> Script:
        scripts.append(Script(*answers))
        return scripts[-1]

    yield start
    for script in scripts:
        script.close()


Serve = Callable[..., Script]
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def connect(script: Script, stall_s: float = 5) -> Wire:
    return Wire(script.address, 5, stall_s)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncontent",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncon\r\n4;x=y\r\ntent\r\n0\r\nTrailer: t\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ncontent",
        b"HTTP/1.0 200 OK\r\nX: Connection: close\r\n\r\ncontent",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncontent",
    ],
    ids=["length", "chunked", "until close", "HTTP/1.0", "continue first"],
)
def test_a_body_is_read_to_its_end_whatever_says_where_that_is(serve: Serve, answer: bytes) -> None:
    wire = connect(serve(answer))
    wire.send(REQUEST)
    assert wire.answer().status == 200
    assert not wire.finished
    assert wire.read(100) == b"content"
    assert wire.finished
    assert wire.reusable == (b"close" not in answer)
    wire.close()


def test_pieces_are_as_large_as_was_asked_for(serve: Serve) -> None:
    wire = connect(serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n5\r\nbcdef\r\n0\r\n\r\n"))
    wire.send(REQUEST)
    wire.answer()
    buffer = bytearray(4)
    assert (wire.read_into(memoryview(buffer)), bytes(buffer)) == (4, b"abcd")
    assert (wire.read_into(memoryview(buffer)), bytes(buffer[:2])) == (2, b"ef")
    assert wire.read_into(memoryview(buffer)) == 0
    wire.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\ncontent",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 two hundred\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\nConnection: close\r\n\r\n" + b"x" * 101,
    ],
    ids=["cut off", "bad chunk", "no HTTP", "no status", "bad header", "endless head", "too long"],
)
def test_what_is_no_answer_is_a_broken_connection(serve: Serve, answer: bytes) -> None:
    wire = connect(serve(answer))
    wire.send(REQUEST)
    with pytest.raises(ConnectionError):
        wire.answer() and wire.read(100)
    wire.close()


def test_an_answer_to_head_has_no_body(serve: Serve) -> None:
    wire = connect(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"))
    wire.send(b"HEAD / HTTP/1.1\r\n\r\n")
    assert wire.answer(body=False).headers["content-length"] == "1000"
    assert wire.finished
    wire.close()


def test_a_connection_closed_without_a_word_is_told_from_one_cut_off(serve: Serve) -> None:
    wire = connect(serve(None))
    wire.send(REQUEST)
    with pytest.raises(Closed):
        wire.answer()
    wire.close()


def test_a_connection_on_which_nothing_moves_is_given_up(serve: Serve) -> None:
    wire = connect(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncon", b"never asked for"), stall_s=0.05)
    wire.send(REQUEST)
    wire.answer()
    with pytest.raises(TimeoutError):
        wire.read(100)
    wire.close()


def test_nobody_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}"):
        Wire(Address("127.0.0.1", port, None), 1, 1)


class TestPool:
    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def ask(self, pool: Pool) -> bytes:
        with pool.wire(Job()) as wire:
            wire.send(REQUEST)
            wire.answer()
            return wire.read(10)

    def test_a_connection_whose_answer_was_read_is_used_again(self, serve: Serve) -> None:
        script = serve(self.ANSWER, self.ANSWER)
        pool = Pool(script.address, 5, 5)
        assert [self.ask(pool), self.ask(pool)] == [b"ok", b"ok"]
        assert script.connections == 1
        pool.close()

    def test_one_that_the_server_closed_meanwhile_is_not(self, serve: Serve) -> None:
        script = serve(self.ANSWER + b"HTTP/1.1 408 Request Timeout\r\n\r\n", self.ANSWER)
        pool = Pool(script.address, 5, 5)
        assert self.ask(pool) == b"ok"
        # What nobody asked for lies in it.
        with pool.wire(Job()) as wire:
            assert not wire.kept
        pool.close()

    def test_an_answer_that_was_not_read_to_its_end_closes_its_connection(self, serve: Serve) -> None:
        script = serve(self.ANSWER, self.ANSWER)
        pool = Pool(script.address, 5, 5)
        with pool.wire(Job()) as wire:
            wire.send(REQUEST)
            wire.answer()
        assert self.ask(pool) == b"ok"
        assert script.connections == 2
        pool.close()

    def test_an_aborted_job_ends_its_wait_at_once_and_begins_nothing_more(self, serve: Serve) -> None:
        script = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        pool, job = Pool(script.address, 5, 60), Job()
        reading = threading.Event()
        ended: list[BaseException] = []

        def read() -> None:
            try:
                with pool.wire(job) as wire:
                    wire.send(REQUEST)
                    wire.answer()
                    reading.set()
                    wire.read(10)
            except OSError as error:
                ended.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert reading.wait(5)
        job.abort()
        thread.join(5)
        assert isinstance(ended[0], ConnectionError)
        with pytest.raises(Cancelled), pool.wire(job):
            pass
        pool.close()
