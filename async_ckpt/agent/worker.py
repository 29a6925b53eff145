"""The data plane: a process (or, with ``uploader="thread"``, a thread) that the agent hands uploads and commits to.

It imports what the control plane must not (aiobotocore, Metaflow), runs at idle priority, holds no state that
matters, and may be killed at any time. The two speak the frames of ``ipc.protocol`` over a socket pair:

- agent → worker: ``{"op": "upload", "id"}``, ``{"op": "commit", "id"}``, ``{"op": "priority", "idle"}``;
- worker → agent: ``{"op": "file", "id", "path", "crc32"}``, ``{"op": "progress", "id", "bytes"}``,
  ``{"op": "uploaded" | "committed", "id"}``, ``{"op": "failed", "id", "why", "transient"}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import anyio

from .. import errors
from ..config import Config
from ..files import wait_for
from ..ipc import protocol
from ..ipc.protocol import Message
from ..spool import journal
from ..spool.spool import Spool
from ..stores import open_store
from .uploader import Uploader

#: How often an upload's progress is reported, in seconds.
_REPORT_S = 0.1

#: How long a worker waits for its predecessor to be gone.
_LOCK_TIMEOUT_S = 30.0

_PR_SET_PDEATHSIG = 1

#: Locks held by workers of this process.
_working: set[str] = set()


async def serve(
    sock: socket.socket, spool: Spool, config: Config, set_priority: Callable[[bool], None] | None = None
) -> None:
    """Work until the agent closes its end; then drop what is under way (the store cleans up after itself).

    ``set_priority`` is called with whether this process should be idle; None in a thread of the task.
    """
    sock.setblocking(False)
    # A worker whose agent was killed may live a moment longer: two at once could put a file's later content over the
    # good one.
    with _only_one(spool.path("worker.lock")):
        worker = _Worker(sock, spool, config)
        try:
            async with anyio.create_task_group() as group:
                async for message in _messages(sock):
                    if message["op"] == "priority":
                        if set_priority is not None:
                            set_priority(message["idle"])
                    else:
                        group.start_soon(worker.run, message)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await worker.store.aclose()


@contextlib.contextmanager
def _only_one(path: str) -> Iterator[None]:
    """Hold the worker's lock: a POSIX one, which children forked by the task do not inherit, and which does not keep
    two threads of one process apart.
    """

    def free() -> bool:
        if path in _working:
            return False
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        wait_for(lambda: path not in _working, _LOCK_TIMEOUT_S, "an earlier worker")
        with open(path, "ab") as file:
            wait_for(free, _LOCK_TIMEOUT_S, "an earlier worker")
            _working.add(path)
            try:
                yield
            finally:
                _working.discard(path)
    except TimeoutError as error:
        raise errors.SpoolError(f"Another worker does not end: {error}", where=path) from error


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
            known = await anyio.to_thread.run_sync(journal.read, self._spool.path("journal"))
            done = known[identity].files if identity in known else {}
            async with _Reporter(self, identity) as reporter:
                await self._uploader.upload(item, done, reporter.file, reporter.progress)
            await self._send({"op": "uploaded", "id": identity})
        except errors.CheckpointError as error:
            transient = isinstance(error, errors.TransientStoreError)
            await self._send({"op": "failed", "id": identity, "why": str(error), "transient": transient})
        except Exception as error:  # A bug of ours or of a library: the checkpoint fails, the worker goes on.
            await self._send(
                {"op": "failed", "id": identity, "why": f"{type(error).__name__}: {error}", "transient": False}
            )

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
    _die_with_parent()
    _set_priority(idle=True)
    with socket.socket(fileno=fd) as sock:
        try:
            anyio.run(serve, sock, Spool.open(directory), Config.from_env(), lambda idle: _set_priority(idle=idle))
        except errors.CheckpointError as error:
            sys.exit(f"async_ckpt worker: {error}")


def _die_with_parent() -> None:
    """Be killed when the agent is: an upload that nobody orders any more must not go on."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:
        sys.exit("async_ckpt worker: the agent is gone")


def _set_priority(*, idle: bool) -> None:
    """While somebody trains, take only the CPU time nobody else wants: the loop does not notice it.

    Each thread has a policy of its own, so all are set.
    """
    policy = os.SCHED_IDLE if idle else os.SCHED_OTHER
    for thread in os.listdir("/proc/self/task"):
        # Ordinary users may not leave SCHED_IDLE again; nobody else wants the CPU then anyway.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(0))
