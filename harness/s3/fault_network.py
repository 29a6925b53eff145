"""Rows of the table: connections, fresh and kept, and what is said over them in other words, or is no HTTP at all."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from harness.s3.fault_calls import Scene
from harness.s3.fault_cells import EITHER, TCP, TLS, Fault, Refused, World
from harness.s3.fault_rows import ALL, BROKEN, FEW, THREE, TIME, any_request, both, refused
from harness.s3.fault_server import Connection, Turn
from harness.s3.faults import (
    ALERT,
    HTTP2,
    Inject,
    after_hello,
    changed,
    chunked,
    compressed,
    drop,
    endless,
    greets,
    hang,
    old_http,
    preceded_by,
    raw,
    reset,
    rewritten,
    says,
    stops,
    twice,
    with_body,
)
from harness.s3.memory_s3 import Answer, Request

NO_ANSWER = r"TLS|SSL|handshake|HTTP|certificate|" + BROKEN + "|" + TIME


def _is_head(request: Request) -> bool:
    return request.operation == "HeadObject"


def _is_get(request: Request) -> bool:
    return request.operation == "GetObject"


# -- connections -------------------------------------------------------------------------------------------------------


def _connects(
    name: str, at_connect: Callable[[Connection], None], words: str = NO_ANSWER, waits: int = 0, **more: Any
) -> list[Fault]:
    """A connection that fails, and all of them."""
    calls = ("put", "stream", "get", "list")
    return [
        Fault(f"{name}, once", times=1, calls=calls, at_connect=at_connect, waits=waits, **more),
        Fault(
            f"{name}, always",
            times=None,
            calls=THREE,
            at_connect=at_connect,
            waits=3 * waits,
            expect=Refused(words),
            **more,
        ),
    ]


def _full(world: World) -> None:
    """Nobody accepts, and no more fit into the queue: the kernel does not answer any more."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    world.held = [listener]
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        world.held.append(filler)
    world.server.url = world.server.url.replace(str(world.server.port), str(listener.getsockname()[1]))


def _nobody(world: World) -> None:
    """Nobody listens at the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        world.server.url = world.server.url.replace(str(world.server.port), str(probe.getsockname()[1]))


CONNECTIONS = [
    Fault("nobody listens", calls=THREE, expect=Refused(r"127\.0\.0\.1:\d+", lasting=False), prepare=_nobody),
    Fault("connections are not answered", calls=THREE, expect=Refused(TIME + "|connect", lasting=False), prepare=_full,
          waits=3),
    *_connects("accepts and is silent", stops(hang), TIME, over=(TCP,), waits=1),
    *_connects("never shakes hands", stops(hang), TIME + "|handshake", over=(TLS,), waits=1),
    *_connects("stops in the handshake", after_hello(hang), TIME + "|handshake", over=(TLS,), waits=1),
    *_connects("closes in the handshake", after_hello(drop), over=(TLS,)),
    *_connects("resets in the handshake", after_hello(reset), over=(TLS,)),
    *_connects("accepts and closes", stops(drop)),
    *_connects("accepts and resets", stops(reset)),
    Fault("plain HTTP on a TLS port", at_connect=says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
          times=None,
          calls=THREE, over=(TLS,), expect=Refused(r"TLS|SSL|http://")),
    Fault("a TLS alert to plain HTTP", at_connect=says(ALERT), times=None, calls=THREE, over=(TCP,),
          expect=Refused("https|TLS"), fallback=Refused("https|TLS|closed")),
    Fault("a TLS alert in the handshake", at_connect=says(bytes.fromhex("15030300020228")), times=None, calls=THREE,
          over=(TLS,), expect=Refused("TLS|SSL|handshake")),
    Fault("HTTP/2 only", at_connect=says(HTTP2), times=None, calls=THREE, over=(TCP,), expect=Refused(NO_ANSWER)),
    Fault("HTTP/2 only, under TLS", raw(HTTP2), times=None, calls=THREE, over=(TLS,), expect=Refused(NO_ANSWER)),
    Fault("an SSH server", at_connect=greets(b"SSH-2.0-OpenSSH_9.6\r\n", hang), times=None, calls=THREE, waits=3,
          expect=Refused(NO_ANSWER)),
    Fault("a mail server", at_connect=greets(b"220 mail ESMTP Postfix\r\n", hang), times=None, calls=THREE, waits=3,
          expect=Refused(NO_ANSWER)),
    Fault("a certificate nobody signed", calls=THREE, over=(TLS,), trusted=False, expect=Refused("certificate",
          lasting=True)),
    Fault("a certificate of another host", calls=THREE, over=(TLS,), host="localhost",
          expect=Refused("certificate|hostname", lasting=True)),
    Fault("wants a certificate of the client", calls=THREE, over=(TLS,), demands_certificate=True,
          expect=Refused("certificate|alert|reset"), fallback=Refused("certificate|alert|SSL|reset|closed")),
]  # fmt: skip

# -- connections that were kept ----------------------------------------------------------------------------------------


def _on_kept(end: Callable[[Connection], None]) -> Inject:
    """This for requests on connections from before; others are served."""

    def inject(turn: Turn) -> None:
        if turn.connection.number <= turn.server.kept:
            turn.read_body()
            end(turn.connection)
        turn.serve()

    return inject


def _only_first(turn: Turn) -> None:
    """A connection serves one request and takes no notice of others."""
    if turn.connection.requests > 1:
        turn.connection.hang()
    turn.serve()


def _serve_and_close(turn: Turn) -> None:
    """Without having said so."""
    turn.serve()
    turn.connection.drop()


def _close_kept(world: World) -> None:
    for connection in world.server.connections:
        connection.abort()


def _time_out_kept(world: World) -> None:
    """What a load balancer says, unasked, to a connection that idles."""
    for connection in world.server.connections:
        with contextlib.suppress(OSError):  # The client was first.
            connection.send(
                b"HTTP/1.0 408 Request Time-out\r\nConnection: close\r\n\r\n<html>Your browser was slow</html>"
            )
        connection.abort()


def _grow_old(_: World) -> None:
    """Idle for longer than connections are kept: that time passes is what is tried."""
    time.sleep(0.6)


def _kept_were_used(world: World, _: Scene) -> str:
    records = world.server.records[world.before :]
    return "a connection was used that was too old" if any(r.connection <= world.kept for r in records) else ""


def _again_and_again(world: World, _: Scene) -> str:
    """A dead connection was met at most once: no try was lost to another one of them."""
    dead = [record for record in world.server.records[world.before :] if record.connection <= world.kept]
    return f"{len(dead)} requests went to dead connections" if len(dead) > 2 else ""


_KEPT = ("put", "stream", "part", "get", "ranged", "list", "delete")
KEPT = [
    Fault("kept connections are dead", _on_kept(hang), None, _KEPT, waits=1, warm=8, meant=any_request,
          then=_again_and_again,
          seen="aio-libs/aiohttp#850"),
    Fault("kept connections are closed", None, None, _KEPT, warm=8, between=_close_kept),
    Fault("kept connections close under the request", _on_kept(drop), None, _KEPT, warm=8, meant=any_request,
          seen="aio-libs/aiohttp#7297"),
    Fault("kept connections are reset under the request", _on_kept(reset), None, _KEPT, warm=8, meant=any_request),
    Fault("kept connections are told 408", None, None, _KEPT, warm=8, between=_time_out_kept, over=(TCP,),
          seen="haproxy/haproxy#1708"),
    Fault("kept connections are too old", _on_kept(hang), None, THREE, warm=4, meant=any_request, between=_grow_old,
          waits=1,
          config={"idle_connection_s": 0.3}, then=_kept_were_used),
    # Where a call begins with another request it begins anew, on one connection.
    Fault("one request a connection, then silence", _only_first, None, ("put", "list", "copy", "put if"), waits=6,
          unless={"copy": EITHER, "put if": EITHER}, meant=any_request),
    Fault("closes after each answer", _serve_and_close, None, _KEPT, warm=2, warm_too=True, meant=any_request,
          seen="aio-libs/aiohttp#7297"),
    Fault("an answer too many", twice, 1, ("put", "part", "get", "list", "delete"), warm=1, warm_too=True,
          meant=_is_get),
    Fault("a HEAD with a body", with_body, None, ("put", "part", "get", "list"), warm=1, warm_too=True, meant=_is_head),
    Fault("a HEAD with a body, as asked for", with_body, None, ("head", "ranged", "copy"), EITHER, meant=_is_head),
]  # fmt: skip

# -- the same in other words -------------------------------------------------------------------------------------------


def _weak(answer: Answer) -> None:
    answer.headers["ETag"] = f"W/{answer.headers['ETag']}" if answer.headers.get("ETag") else ""


def _unquoted(answer: Answer) -> None:
    answer.headers["ETag"] = answer.headers.get("ETag", "").strip('"')


def _takes_unquoted(world: World) -> None:
    world.s3.conditions = "unquoted"


def _lower(head: bytes, body: bytes) -> bytes:
    first, _, rest = head.partition(b"\r\n")
    return first + b"\r\n" + b"\r\n".join(
        name.lower() + colon + value for name, colon, value in (line.partition(b":") for line in rest.split(b"\r\n"))
    ) + body  # fmt: skip


def _with_more(lines: bytes) -> Callable[[bytes, bytes], bytes]:
    return lambda head, body: head[:-2] + lines + b"\r\n" + body


def _same(name: str, inject: Inject, calls: tuple[str, ...] = ALL, **more: Any) -> Fault:
    return Fault(name, inject, None, calls, meant=any_request, **more)


_SOME = ("put", "part", "complete", "copy", "get", "ranged", "head", "list", "delete")
SAME = [
    _same("100 Continue, unasked", preceded_by(b"HTTP/1.1 100 Continue\r\n\r\n")),
    # The standard library's client takes all but 100 for the answer: the fallback says so.
    _same("103 Early Hints", preceded_by(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 3), _SOME,
          fallback=Refused("interim"), tidies=False),
    _same("HTTP/1.0", old_http(announced=True)),
    # Whether a content without a length is whole nobody can tell: it may be refused.
    _same("HTTP/1.0 without a length", old_http(announced=False), ("put", "get", "file", "list", "delete", "create"),
          unless={"get": EITHER, "file": EITHER}),
    _same("chunked", chunked(), ("get", "file", "list", "complete", "put", "part", "ranged", "put if", "delete"),
          unless={"ranged": EITHER}),
    _same("chunked with trailers", chunked(trailers=b"x-amz-checksum-crc32: AAAAAA==\r\nx-more: 1\r\n"), ("get",
          "file", "list",
          "complete", "put")),
    _same("chunked with extensions", chunked(extension=b";name=value"), ("get", "file", "list", "complete")),
    _same("no reason after the status", rewritten(lambda head, body: head.replace(b" OK\r\n", b"\r\n", 1) + body),
          _SOME),
    _same("names of headers in lower case", rewritten(_lower), _SOME),
    _same("headers that are no ASCII", rewritten(_with_more(b"x-name: caf\xe9 \xff\r\n")), _SOME),
    _same("weak ETags", changed(_weak), ("put", "part", "complete", "get", "ranged", "head", "list")),
    _same("ETags without quotes", changed(_unquoted), ("put", "part", "complete", "get", "ranged", "head", "put if"),
          prepare=_takes_unquoted),
    _same("lines end with LF", rewritten(lambda head, body: head.replace(b"\r\n", b"\n") + body), FEW, expect=EITHER),
    _same("a line before the answer", preceded_by(b"\r\n"), FEW, expect=EITHER),
    _same("compressed on the way", compressed, ("get", "file", "list", "complete"), expect=EITHER, tidies=False,
          seen="aio-libs/aiohttp#4462"),
    _same("a cookie with every answer",
          changed(lambda answer: answer.headers.update({"Set-Cookie": "AWSALB=1; Path=/"})),
          _SOME),
]  # fmt: skip

# -- what is no HTTP ---------------------------------------------------------------------------------------------------


def _length(said: bytes) -> Inject:
    """The right answer, whose length is said so; it ends with the connection."""
    return rewritten(lambda head, body: re.sub(rb"Content-Length: \d+\r\n", said, head) + body, drop)


def _odd(name: str, inject: Inject, calls: tuple[str, ...] = FEW) -> list[Fault]:
    """The right answer, said so that it need not be understood. Once, it is asked for again."""
    return [Fault(f"{name}, once", inject, 1, calls), Fault(f"{name}, always", inject, None, calls, EITHER)]


_IN_HEADS = ("put", "part", "get", "head", "list")
WRONG = [
    *_odd("a head of 1 MB", rewritten(_with_more(b"x-long: " + b"a" * 1_000_000 + b"\r\n"), drop), _IN_HEADS),
    *_odd("10,000 headers", rewritten(_with_more(b"x-many: 0123456789\r\n" * 10_000), drop), _IN_HEADS),
    *_odd("a length that is no number", _length(b"Content-Length: many\r\n")),
    *_odd("a negative length", _length(b"Content-Length: -5\r\n")),
    *_odd("two lengths", _length(b"Content-Length: 20000\r\nContent-Length: 0\r\n")),
    *both("a chunk of no size", chunked(size=b"zz"), ".", calls=("get", "file", "ranged", "list", "complete"),
          always=("get", "list")),
    *refused("a status of 99", raw(b"HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n", hang), ".", FEW, waits=3),
    *refused("a status of 1000", raw(b"HTTP/1.1 1000 Odd\r\nContent-Length: 0\r\n\r\n"), ".", FEW),
    *refused("ICY 200 OK", raw(b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n"), ".", FEW),
    *refused("noise", raw(bytes(range(256)) * 40), ".", FEW),
]  # fmt: skip

ENDLESS = [
    *(
        Fault(f"an answer without an end, {status} to {calls[0]}", endless(status), None, calls, Refused("."), waits=3,
              noisy=True, most_sent_bytes=most)
        for status, calls, most in (
            (500, ("put", "part", "get", "list", "complete", "delete"), 30 << 20),
            (200, ("put", "part", "complete", "copy", "file", "delete"), 30 << 20),
            (200, ("list",), 40 << 20), (200, ("get",), 400 << 20),
        )
    ),
    Fault("an answer of 10 GB", endless(200, announced=10_000_000_000), None, ("put", "get", "file", "list", "copy"),
          Refused("."), waits=3, noisy=True, most_sent_bytes=40 << 20),
]  # fmt: skip
