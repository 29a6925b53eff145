"""The data plane: a process (or, with ``uploader="thread"``, a thread) that the agent hands uploads and commits to.

It imports what the control plane must not (aiobotocore, Metaflow), runs at idle priority, holds no state that
matters, and may be killed at any time. The two speak the frames of ``ipc.protocol`` over a socket pair:

agent → worker: ``{"op": "upload", "id", "done"}`` · ``{"op": "commit", "id"}`` · ``{"op": "priority"}`` (the task
only waits for us now) worker → agent: ``{"op": "file", "id", "path", "crc32"}`` · ``{"op": "progress", "id",
"bytes"}`` · ``{"op": "uploaded" | "committed", "id"}`` · ``{"op": "failed", "id", "why"}``
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator

import anyio

from .. import errors
from ..config import Config
from ..ipc import protocol
from ..ipc.protocol import Message
from ..spool.spool import Spool
from ..stores import open_store
from .uploader import Uploader

#: Progress is reported at most this often, per checkpoint (seconds) ...
_REPORT_S = 0.1


async def serve(sock: socket.socket, spool: Spool, config: Config) -> None:
    """Work until the agent closes its end; then drop what is under way (the store cleans up after itself)."""
    sock.setblocking(False)
    worker = _Worker(sock, spool, config)
    try:
        async with anyio.create_task_group() as group:
            async for message in _messages(sock):
                if message["op"] == "priority":
                    _normal_priority()
                else:
                    group.start_soon(worker.run, message)
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await worker.store.aclose()


async def _messages(sock: socket.socket) -> AsyncIterator[Message]:
    decoder = protocol.Decoder()
    while True:
        await anyio.wait_readable(sock)
        try:
            data, _ = protocol.receive(sock)
        except BlockingIOError:
            continue
        except OSError:
            return
        if not data:
            return
        for message, _ in decoder.feed(data, []):
            yield message


class _Worker:
    def __init__(self, sock: socket.socket, spool: Spool, config: Config) -> None:
        self._sock, self._spool = sock, spool
        self.store = open_store(spool.store, config)
        self._uploader = Uploader(self.store, config)
        self._sending = anyio.Lock()

    async def run(self, message: Message) -> None:
        identity = message["id"]
        try:
            item = await anyio.to_thread.run_sync(self._spool.read, identity)
            if item is None:
                raise errors.SpoolError(f"The record of checkpoint {identity} is gone", where=self._spool.directory)
            if message["op"] == "commit":
                await self._uploader.commit(item.reference)
                await self._send({"op": "committed", "id": identity})
                return
            async with _Reporter(self, identity) as reporter:
                await self._uploader.upload(item, message["done"], reporter.file, reporter.progress)
            await self._send({"op": "uploaded", "id": identity})
        except errors.CheckpointError as error:
            await self._send({"op": "failed", "id": identity, "why": str(error)})
        except Exception as error:  # A bug of ours or of a library: the checkpoint fails, the worker goes on.
            await self._send({"op": "failed", "id": identity, "why": f"{type(error).__name__}: {error}"})

    async def _send(self, message: Message) -> None:
        data = protocol.encode(message)
        async with self._sending:
            while data:
                try:
                    data = data[protocol.send(self._sock, data, []) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                except OSError:
                    return  # The agent is gone; reading sees it and ends the worker.


class _Reporter:
    """Collects what one upload tells and sends it on now and then."""

    def __init__(self, worker: _Worker, identity: str) -> None:
        self._worker, self._identity = worker, identity
        self._bytes = 0
        self._files: list[Message] = []

    def progress(self, count: int) -> None:
        self._bytes += count

    def file(self, path: str, crc32: list[int]) -> None:
        self._files.append({"op": "file", "id": self._identity, "path": path, "crc32": crc32})

    async def __aenter__(self) -> _Reporter:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        if kind is None:
            await self._report()

    async def _loop(self) -> None:
        while True:
            await anyio.sleep(_REPORT_S)
            await self._report()

    async def _report(self) -> None:
        count, self._bytes = self._bytes, 0
        files, self._files = self._files, []
        with anyio.CancelScope(shield=True):
            for message in files:
                await self._worker._send(message)
            if count:
                await self._worker._send({"op": "progress", "id": self._identity, "bytes": count})


def main(fd: int, directory: str) -> None:
    """Entry point of the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _idle_priority()
    with socket.socket(fileno=fd) as sock:
        try:
            anyio.run(serve, sock, Spool.open(directory), Config.from_env())
        except errors.CheckpointError as error:
            sys.exit(f"async_ckpt worker: {error}")


def _idle_priority() -> None:
    """Take only the CPU time nobody else wants: the training loop does not notice uploads."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _normal_priority() -> None:
    with contextlib.suppress(
        OSError, AttributeError
    ):  # Not allowed to ordinary users; idle time is plenty then anyway.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
