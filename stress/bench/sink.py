"""An S3 server that throws away what it gets, to see what a client can do: ``python -m stress.bench.sink [--tls]``.

It answers at once and costs next to nothing (over plain TCP the kernel drops the bodies without a copy), so what is
measured is the client. It knows the sizes of its objects, keeps small ones (a checkpoint's metadata is read back), and
serves for all others one pattern (``pattern.py``). ``GET /-/stats``: requests by kind and bytes of bodies, as JSON;
``POST /-/reset``: count from zero. Prints one line of JSON when it is ready. Pure standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time

from . import pattern
from .sink_bucket import Answer, Buckets
from .sink_http import Closed, Connection, Pace

COMMAND = "python -m stress.bench.sink"
_SMALL_BYTES = 64 << 10
#: Orders (which parts make an object, what to delete) are read whole.
_ORDER_BYTES = 8 << 20


class Sink:
    """Answers connections until it is ended.

    Parameters
    ----------
    options : Namespace
        Of the command line.
    """

    def __init__(self, options: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._buckets = Buckets(verify=options.verify)
        self._keep = _SMALL_BYTES if options.keep_small else 0
        self._verify = options.verify
        self._latency_s = options.latency_ms / 1000
        self._bytes_s = options.rate_mbps * 1e6 / 8
        #: One network for all connections.
        self._network = Pace(options.network_mbps * 1e6 / 8) if options.network_mbps else None

    def serve(self, listening: socket.socket) -> None:
        while True:
            sock, _ = listening.accept()
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, Closed), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._tls.wrap_socket(sock, server_side=True) if self._tls else sock as wire:
                connection = Connection(wire, self._network or Pace(self._bytes_s))
                while self._exchange(connection):
                    pass

    def _exchange(self, connection: Connection) -> bool:
        """One request; whether there may be another."""
        request = connection.request()
        digested = self._verify and "x-amz-checksum-crc32" in request.headers
        body = connection.body(request, _ORDER_BYTES if request.method == "POST" else self._keep, digested)
        if request.path.startswith("/-/"):
            if request.method == "POST":
                self._buckets.reset()
            answer = Answer(body=json.dumps(self._buckets.stats()).encode())
        else:
            answer = self._buckets.answer(request, body)
        if self._latency_s:
            time.sleep(self._latency_s)
        _send(connection, answer, empty=request.method == "HEAD")
        return request.headers.get("connection", "").lower() != "close"


def _send(connection: Connection, answer: Answer, *, empty: bool) -> None:
    if answer.served is None:
        connection.answer(answer.status, answer.headers, len(answer.body))
        if answer.body:
            connection.send(answer.body)
        return
    stored, begin, count = answer.served
    connection.answer(answer.status, answer.headers, count)
    if empty:
        return
    if stored.content is not None:
        connection.send(stored.content[begin : begin + count])
        return
    while count:
        offset = begin % pattern.PIECE_BYTES
        data = pattern.piece()[offset : offset + count]
        connection.send(data)
        begin += len(data)
        count -= len(data)


def make_certificates(directory: str) -> tuple[str, str]:
    """An authority and a server's certificate for this machine, in a directory: paths of the authority's certificate,
    and of the server's with its key. (Some clients refuse a server that is its own authority.)
    """
    authority, key = os.path.join(directory, "ca.pem"), os.path.join(directory, "ca.key")
    server = os.path.join(directory, "server.pem")
    new = ["openssl", "req", "-x509", "-nodes", "-days", "30", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    signed = ["-CA", authority, "-CAkey", key, "-addext", names, "-addext", "basicConstraints=CA:FALSE"]
    for more in (
        ["-subj", "/CN=stress.bench", "-keyout", key, "-out", authority],
        ["-subj", "/CN=localhost", "-keyout", f"{server}.key", "-out", server, *signed],
    ):
        subprocess.run([*new, *more], check=True, capture_output=True)
    with open(server, "a") as file, open(f"{server}.key") as private:
        file.write(private.read())
    return authority, server


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--tls", action="store_true", help="with a certificate made by the openssl command")
    parser.add_argument("--directory", help="where certificates are put (default: a new one)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="sleep so long before each answer")
    parser.add_argument("--rate-mbps", type=float, default=0.0, help="megabits a second and connection, each way")
    parser.add_argument("--network-mbps", type=float, default=0.0, help="megabits a second, all connections together")
    parser.add_argument("--verify", action="store_true", help="refuse a body that is not that of x-amz-checksum-crc32")
    parser.add_argument("--keep-small", action=argparse.BooleanOptionalAction, default=True, help="up to 64 KiB")
    options = parser.parse_args(arguments)
    authority = tls = None
    if options.tls:
        authority, server = make_certificates(options.directory or tempfile.mkdtemp(prefix="sink-"))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(server)
    pattern.piece()
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listening:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
        print(json.dumps({"url": url, "ca": authority}), flush=True)
        Sink(options, tls).serve(listening)


if __name__ == "__main__":
    main()
