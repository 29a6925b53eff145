"""What can go wrong with one request or one connection, as functions for ``FaultServer``; ``fault_table`` says when."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness.s3.fault_server import Connection, Turn
from harness.s3.memory_s3 import Answer, Object, document, error

#: Deals with a request.
Inject = Callable[[Turn], None]
#: Deals with a connection that was just made.
AtConnect = Callable[[Connection], None]
#: How a connection ends.
End = Callable[[Connection], None]

#: How often a byte comes that drips, in seconds: far less than a KiB within any limit of the tests.
DRIP_S = 0.1

hang, drop, reset, close = Connection.hang, Connection.drop, Connection.reset, Connection.close

#: What a person sees who is not logged in.
PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please log in to the network</body></html>"
PLAIN_PAGE = b"<html><body><center>The plain HTTP request was sent to HTTPS port</center></body></html>"
NOT_FOUND_PAGE = b"<html><body><h1>Not Found</h1>The requested URL was not found on this server.</body></html>"
#: What a server that only speaks TLS says to one who does not: a fatal alert (internal_error, or decode_error).
ALERT = bytes.fromhex("15030300020250")
#: The first frame of HTTP/2: SETTINGS, empty.
HTTP2 = bytes.fromhex("000000040000000000")


def html(status: int, body: bytes = PAGE, reason: str = "Because") -> Answer:
    return Answer(status, body, {"Content-Type": "text/html"}, reason)


def reset_later(connection: Connection) -> None:
    """As over a network: the reset is the answer to what was sent after the answer."""
    connection.wait(0.1)
    connection.reset()


# -- no answer, or half of one -----------------------------------------------------------------------------------------


def unanswered(end: End) -> Inject:
    """The request is taken, nothing is done, and then this."""

    def inject(turn: Turn) -> None:
        turn.read_body()
        end(turn.connection)

    return inject


def lost(end: End) -> Inject:
    """All is done, but the answer does not arrive."""

    def inject(turn: Turn) -> None:
        turn.answer()
        end(turn.connection)

    return inject


def body_not_taken(turn: Turn) -> None:
    turn.connection.hang()


def half_head(end: End) -> Inject:
    def inject(turn: Turn) -> None:
        head, _ = turn.raw(turn.answer())
        turn.connection.send(head[: len(head) // 2])
        end(turn.connection)

    return inject


def half_body(end: End, *, chunked: bool = False) -> Inject:
    """The answer breaks off in the middle of its body; where it has none, of one that was announced."""

    def inject(turn: Turn) -> None:
        answer = turn.answer()
        if chunked:
            answer.headers |= {"Transfer-Encoding": "chunked", "Content-Length": ""}
            head, body = turn.raw(answer)
            turn.connection.send(head + b"%x\r\n" % len(body) + body + b"\r\n")  # All of it, but not the end.
        else:
            length = None if answer.body else 50
            body = b"" if turn.request.method == "HEAD" else answer.body
            turn.connection.send(turn.s3.dated(answer).head(length=length) + body[: len(body) // 2])
        end(turn.connection)

    return inject


def dripping_head(turn: Turn) -> None:
    """A byte now and then, for ever."""
    turn.answer()
    turn.connection.send(b"HTTP/1.1 200 OK\r\nx-drip: ")
    _drip(turn, b"x")


def dripping_body(turn: Turn) -> None:
    """Half of it, and then a byte now and then."""
    answer = turn.answer()
    half = len(answer.body) // 2
    turn.connection.send(turn.s3.dated(answer).head() + answer.body[:half])
    for number in range(half, len(answer.body)):
        turn.connection.wait(DRIP_S)
        turn.connection.send(answer.body[number : number + 1])


def dripping_informational(turn: Turn) -> None:
    """``102 Processing`` for ever."""
    turn.answer()
    _drip(turn, b"HTTP/1.1 102 Processing\r\n\r\n")


def _drip(turn: Turn, data: bytes) -> None:
    while True:
        turn.connection.send(data)
        turn.connection.wait(DRIP_S)


def white_space_then(outcome: Callable[[Turn], Answer], seconds: float) -> Inject:
    """The head at once, and white space until the work is done: what S3 does while it puts an object together."""

    def inject(turn: Turn) -> None:
        answer = outcome(turn)
        head = Answer(200, b"", {"Content-Type": "application/xml", "Transfer-Encoding": "chunked"}, "OK")
        head.headers["Content-Length"] = ""
        turn.connection.send(turn.s3.dated(head).head())
        for _ in range(int(seconds / DRIP_S)):
            turn.connection.send(b"1\r\n \r\n")
            turn.connection.wait(DRIP_S)
        body = answer.body.partition(b"?>\n")[2]
        turn.connection.send(b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")

    return inject


def internal_error(turn: Turn) -> Answer:
    """Nothing is done."""
    turn.read_body()
    return error(200, "InternalError", "We encountered an internal error. Please try again.")


# -- another answer ----------------------------------------------------------------------------------------------------


def instead(answer: Answer) -> Inject:
    """The request is taken, nothing is done, and it is answered so."""

    def inject(turn: Turn) -> None:
        turn.read_body()
        turn.send(replace(answer, headers=dict(answer.headers)))

    return inject


def done_but(answer: Answer) -> Inject:
    """All is done, and it is answered so."""

    def inject(turn: Turn) -> None:
        turn.answer()
        turn.send(replace(answer, headers=dict(answer.headers)))

    return inject


def early(answer: Answer, end: End) -> Inject:
    """Refused as soon as the head was read; the body is not taken."""

    def inject(turn: Turn) -> None:
        head, body = turn.raw(replace(answer, headers=dict(answer.headers)))
        turn.connection.wait_for_data()
        turn.connection.send(head + body)
        end(turn.connection)

    return inject


def changed(change: Callable[[Answer], None]) -> Inject:
    """The right answer, but for this."""

    def inject(turn: Turn) -> None:
        answer = turn.answer()
        change(answer)
        turn.send(answer)

    return inject


def damaged(turn: Turn) -> None:
    """What was stored is not what was sent; the checksum in the answer says so."""
    answer = turn.answer()
    query, key = turn.request.query, turn.request.key
    stored = turn.s3.uploads[query["uploadId"]].parts if "uploadId" in query else turn.s3.objects
    at: Any = int(query["partNumber"]) if "uploadId" in query else key
    damaged = stored[at] = Object(bytes([stored[at].data[0] ^ 1]) + stored[at].data[1:], stored[at].etag)
    answer.headers["x-amz-checksum-crc32"] = damaged.crc32
    turn.send(answer)


def stored_nothing(status: int) -> Inject:
    """An answer as for what was done, of another status; nothing was done."""
    return instead(Answer(status, b"", {"ETag": '"0123456789abcdef0123456789abcdef"'}, "Whatever"))


def raw(data: bytes, end: End = drop) -> Inject:
    """These bytes for an answer."""

    def inject(turn: Turn) -> None:
        turn.read_body()
        turn.connection.send(data)
        end(turn.connection)

    return inject


def endless(status: int, *, announced: int | None = None) -> Inject:
    """An answer without an end."""

    def inject(turn: Turn) -> None:
        turn.read_body()
        answer = Answer(status, b"", {"ETag": '"0123456789abcdef0123456789abcdef"', "Connection": "close"}, "Whatever")
        answer.headers["Content-Type"] = "application/xml"
        if announced is None:
            answer.headers["Content-Length"] = ""
        turn.connection.send(turn.s3.dated(answer).head(length=announced))
        while True:
            turn.connection.send(b"<Endless>" * 50_000)

    return inject


# -- the right answer, said in another way -----------------------------------------------------------------------------


def preceded_by(data: bytes) -> Inject:
    """Something comes before the answer."""

    def inject(turn: Turn) -> None:
        answer = turn.answer()
        turn.connection.send(data)
        turn.send(answer)

    return inject


def rewritten(change: Callable[[bytes, bytes], bytes], end: End | None = None) -> Inject:
    """The right answer, its head and body made into other bytes."""

    def inject(turn: Turn) -> None:
        turn.connection.send(change(*turn.raw(turn.answer())))
        if end is not None:
            end(turn.connection)

    return inject


def chunked(*, trailers: bytes = b"", extension: bytes = b"", size: bytes | None = None) -> Inject:
    """The right answer, chunked."""

    def inject(turn: Turn) -> None:
        answer = turn.answer()
        if answer.status == 204:
            turn.send(answer)
            return
        answer.headers |= {"Transfer-Encoding": "chunked", "Content-Length": ""}
        head, body = turn.raw(answer)
        first = (size or b"%x" % len(body)) + extension + b"\r\n" + body + b"\r\n" if body or size else b""
        turn.connection.send(head + (b"" if turn.request.method == "HEAD" else first + b"0\r\n" + trailers + b"\r\n"))
        if size is not None:
            turn.connection.drop()

    return inject


def old_http(*, announced: bool) -> Inject:
    """HTTP/1.0, with or without a length."""

    def inject(turn: Turn) -> None:
        answer = turn.answer()
        if not announced:
            answer.headers["Content-Length"] = ""
        _, body = turn.raw(answer)
        turn.connection.send(answer.head(version="1.0") + body)
        turn.connection.close()

    return inject


def compressed(turn: Turn) -> None:
    """A proxy between has compressed the answer, which nobody asked for."""
    answer = turn.answer()
    answer.body = gzip.compress(answer.body)
    answer.headers |= {"Content-Encoding": "gzip", "ETag": f"W/{answer.headers.get('ETag', '')}"}
    turn.send(answer)


def with_body(turn: Turn) -> None:
    """The answer to a HEAD has a body, as only those to others may."""
    answer = turn.answer()
    turn.connection.send(turn.s3.dated(answer).head() + answer.body)


def twice(turn: Turn) -> None:
    """Two answers to one request."""
    head, body = turn.raw(turn.answer())
    turn.connection.send(head + body + head + body)


# -- listings ----------------------------------------------------------------------------------------------------------


def page(token: str | None, truncated: str = "") -> Inject:
    """The right keys, but how to go on is said so."""

    def inject(turn: Turn) -> None:
        turn.read_body()
        s3, query = turn.s3, turn.request.query
        keys = sorted(key for key in s3.objects if key.startswith(query.get("prefix", "")))[: s3.page_size]
        turn.send(s3.listing(keys, token, query, truncated=truncated))

    return inject


def page_without(change: Callable[[bytes], bytes]) -> Inject:
    """The right page, its document changed."""

    def inject(turn: Turn) -> None:
        answer = turn.answer()
        answer.body = change(answer.body)
        turn.send(answer)

    return inject


def everything(turn: Turn) -> None:
    """The prefix is ignored."""
    turn.read_body()
    turn.send(turn.s3.listing(sorted(turn.s3.objects), None, turn.request.query))


#: A document of a few hundred bytes that would be gigabytes (billion laughs).
BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "' + b"x" * 100 + b'">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 50) for i in range(7))
    + b"]><ListBucketResult><IsTruncated>false</IsTruncated><Name>&h;</Name></ListBucketResult>"
)  # fmt: skip


# -- connections -------------------------------------------------------------------------------------------------------


def says(data: bytes, end: End = drop) -> AtConnect:
    """These bytes come as soon as something was received; nothing else is understood."""

    def at_connect(connection: Connection) -> None:
        connection.receive()
        connection.send(data)
        end(connection)

    return at_connect


def greets(data: bytes, end: End) -> AtConnect:
    """These bytes come unasked, as from an SSH or mail server."""

    def at_connect(connection: Connection) -> None:
        connection.send(data)
        end(connection)

    return at_connect


def stops(end: End) -> AtConnect:
    """The connection is accepted, and then this."""
    return end


def after_hello(end: End) -> AtConnect:
    """The handshake ends in its middle."""

    def at_connect(connection: Connection) -> None:
        connection.receive()
        end(connection)

    return at_connect


def upload_without_id() -> Answer:
    return document("InitiateMultipartUploadResult", "<Bucket>bucket</Bucket><UploadId></UploadId>")
