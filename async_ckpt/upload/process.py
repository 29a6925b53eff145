"""The uploader: a process (or, with ``uploader="thread"``, a thread) that the agent hands uploads and commits to.

It imports what the agent must not (aiobotocore, Metaflow), runs at idle priority, holds no state that matters, and may
be killed at any time. The two speak the frames of ``ipc.protocol`` over a socket pair:

- agent → uploader: ``{"op": "upload", "id"}``, before it what is known of the checkpoint: the journal's lines of what
  earlier tries have stored, as they stand (frames without ``op``), and ``{"op": "unchanged", "id", "path", "key",
  "crc32", "digests", "etag"}`` for each file that the store has from an earlier checkpoint, under ``key``;
  ``{"op": "commit", "ids"}``; ``{"op": "priority", "idle"}``; ``{"op": "rate", "bytes_per_s"}``: send content no
  faster than this (0: as fast as can be), what is under way included; ``{"op": "pause", "id"}``: stop an upload, or the
  batch that this one is to be committed in, which will be ordered again; there is no answer to either, but for what of
  the batch is committed; ``{"op": "gather", "id", "timeout_s", "decides"}``: wait for the other ranks' shards, and for
  the commit (``Patience``); said again, the wait is shortened; ``{"op": "gone", "attempt"}``: tell the other nodes of
  the gang that this one saves no more, answered by ``{"op": "gone"}``;
  ``{"op": "claim", "attempt", "who", "start"}``: claim a start of the attempt, ``start`` if that is chosen already,
  answered by ``{"op": "claimed", "attempt", "start", "first", "why"}``, without ``start`` if it failed;
  ``{"op": "annotate", "name"}``: write one of the spool's ``annotations/`` to the store, answered by
  ``{"op": "annotated", "metadata"}``, or with ``why`` and ``transient`` if it failed;
  ``{"op": "retain"}``: look what the rules do not keep, answered by ``{"op": "candidates", "keys", "more"}``;
  ``{"op": "remove", "keys"}``: of these, answered by ``{"op": "removed", "keys"}``;
  ``{"op": "card", "store", "state", …}``: write the card (``card/writer.py``), answered by ``{"op": "card", "state"}``;
- uploader → agent: ``{"op": "ready", "id": ""}``, first of all;
  the journal's line of each file and part that is stored (``spool/journal.py``; frames without ``op``), before which
  leases are not let go; ``{"op": "progress", "id", "bytes"}``: so many were sent, ``{"op": "copied", "id", "bytes"}``:
  so many the store copied from an earlier checkpoint; ``{"op": "waiting", "id", "why"}``, ``{"op": "uploaded" |
  "committed", "id"}`` (of a collective checkpoint with its ``reference``, but for the metadata), ``{"op": "failed",
  "id", "why", "transient", "refused"}``
  (refused: by the store, for good; ``decided``: by the ranks), ``{"op": "notice", "id": "", "why"}``: what the user
  should know of how the store works here, once. The first that fails ends a batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import anyio

from .. import errors, layout
from ..card.rows import metrics_of
from ..card.writer import CardWriter
from ..config import EARLIER_BYTES, EARLIER_TIMEOUT_S, KILLED_S, REPORT_S, UPLOADER_LOCK_S, Config
from ..ipc import protocol
from ..ipc.protocol import Message
from ..manifest import Manifest
from ..ranks import agreement, starts
from ..retention.apply import Retention
from ..retention.rules import rules_of
from ..spool.journal import CheckpointState, Known, Line, stored_in
from ..spool.records import Admitted
from ..spool.spool import Spool
from ..spool.unchanged import StoredFile
from ..stores import open_store
from ..stores.base import StoreSpec
from ..stores.catalog import read_json, read_reference
from ..system import processes
from ..system.clock import REAL_CLOCK
from ..system.digests import can_know_again
from ..system.files import locked
from ..system.priority import set_priority
from .annotate import annotate
from .checkpoint import CheckpointWriter
from .earlier import objects_of
from .together import CollectiveCommit, Patience

#: Digests of larger files (beyond 1 TiB) do not fit into a frame: nothing is told of those until all is uploaded.
_MAX_CRCS = 1 << 16
#: Beyond this number (256 GiB) they are told without those by which content is known again.
_MAX_DIGESTS = 1 << 14

#: Longest reason that is told, in characters.
_MAX_WHY = 10_000

#: What a machine may be short of for a moment: threads, memory, descriptors.
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

_PR_SET_PDEATHSIG = 1


async def serve(sock: socket.socket, spool: Spool, config: Config, *, alone: bool = False) -> None:
    """Work until the agent closes its end; then drop what is under way (the store cleans up after itself).

    ``alone``: in a process of its own. That takes the priority it is told, and prints to the agent's log what the user
    should know of the store.
    """
    sock.setblocking(False)
    # An uploader whose agent was killed may live a moment longer: two at once could put a file's later content over the
    # good one.
    with _only_one(spool.path("uploader.lock")):
        uploader = _Uploader(sock, spool, config, alone=alone)
        await uploader.send({"op": "ready", "id": ""})  # Nothing has failed at the start.
        known = Known()
        unchanged: defaultdict[str, dict[str, StoredFile]] = defaultdict(dict)
        try:
            async with anyio.create_task_group() as group:
                async for message in _messages(sock):
                    op = message.get("op")
                    if op is None:
                        known.apply(message)
                    elif op == "priority" and alone:
                        set_priority(idle=message["idle"])
                    elif op == "rate":
                        uploader.pace(message["bytes_per_s"])
                    elif op == "commit":
                        group.start_soon(uploader.commit, message["ids"])
                    elif op == "gather":
                        group.start_soon(uploader.gather, message["id"], message["timeout_s"], message["decides"])
                    elif op == "claim":
                        group.start_soon(uploader.claim, message)
                    elif op == "annotate":
                        group.start_soon(uploader.annotate, message)
                    elif op == "retain":
                        group.start_soon(uploader.retain)
                    elif op == "remove":
                        group.start_soon(uploader.remove, message["keys"])
                    elif op == "card":
                        group.start_soon(uploader.card, message)
                    elif op == "gone":
                        group.start_soon(uploader.gone, message["attempt"])
                    elif op == "pause":
                        uploader.pause(message["id"])
                    elif op == "upload":
                        identity = message["id"]
                        stored = known.checkpoints.pop(identity, CheckpointState())
                        group.start_soon(uploader.upload, identity, stored, unchanged.pop(identity, {}))
                    elif op == "unchanged":
                        unchanged[message["id"]][message["path"]] = StoredFile(message["key"], stored_in(message))
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await uploader.aclose()


@contextlib.contextmanager
def _only_one(path: str) -> Iterator[None]:
    """Hold the uploader's lock; an earlier uploader that does not let go of it is ended."""
    with contextlib.ExitStack() as stack:
        try:
            try:
                stack.enter_context(locked(path, timeout_s=KILLED_S))
            except TimeoutError:
                _end_others(path)
                stack.enter_context(locked(path, timeout_s=UPLOADER_LOCK_S))
        except TimeoutError as error:
            raise errors.SpoolError(f"Another uploader does not end: {error}", where=path) from error
        yield


def _end_others(path: str) -> None:
    """The kernel ends an uploader with its agent. An uploader that hangs in the kernel (a disk that is gone) cannot die
    and keeps its lock, but never does anything more. So the next uploader gets a new lock file.
    """
    directory = os.path.dirname(path)
    for pid in [pid for pid in processes.find("uploader", directory) if pid != os.getpid()]:
        if not processes.end(pid, "uploader", directory, KILLED_S):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


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


class _Uploader:
    def __init__(self, sock: socket.socket, spool: Spool, config: Config, *, alone: bool) -> None:
        self._sock, self._spool, self._config, self._alone = sock, spool, config, alone
        self._told: set[str] = set()
        self._notice = ""
        self.store = open_store(spool.store, config)
        self._writer = CheckpointWriter(self.store, config)
        self._sending = anyio.Lock()
        self._uploads: dict[str, anyio.CancelScope] = {}
        #: Keys of checkpoints of which ``_learn`` has asked; the first time it looks for one.
        self._learned: set[str] = set()
        self._learning = anyio.Lock()
        #: The batches that are being committed, by the id of each checkpoint in them.
        self._commits: dict[str, anyio.CancelScope] = {}
        self._collective = CollectiveCommit(self.store, self._writer, config)
        self._gathering: dict[str, Patience] = {}
        self._card: CardWriter | None = None
        self._retention = Retention(self.store, spool.task, rules_of(config), config)

    async def upload(self, identity: str, known: CheckpointState, unchanged: dict[str, StoredFile]) -> None:
        with anyio.CancelScope() as scope:
            self._uploads[identity] = scope
            try:
                item = await self._read(identity)
                await self._learn(item)
                async with _Reporter(self, identity) as reporter:
                    await self._writer.upload(item, known, unchanged, reporter)
                answer: Message = {"op": "uploaded", "id": identity}
            except Exception as error:
                answer = _failed(identity, error)
        if self._uploads.get(identity) is scope:
            del self._uploads[identity]
        if not scope.cancelled_caught:
            await self.send(answer)

    async def _learn(self, item: Admitted) -> None:
        """Hear what the store has of checkpoints that this process has not uploaded: of the one that the task has
        loaded last, and of the newest of this task, as attempts on other machines may have saved it.
        """
        if item.size < EARLIER_BYTES or not self._config.content_digests:
            return
        if not can_know_again():
            self._writer.notice = (
                "Content that an earlier checkpoint has already is sent again, unless nobody has touched its file: "
                "there is no xxhash here to know it by, and this processor is slow at SHA-256. pip install xxhash"
            )
            return
        async with self._learning:
            keys = {self._spool.loaded()}
            # What cannot be heard is only sent again.
            with contextlib.suppress(errors.CheckpointError), anyio.move_on_after(EARLIER_TIMEOUT_S):
                if not self._learned:
                    newest = await read_reference(self.store, self._spool.task.task_folder, layout.LATEST)
                    keys.add(newest["key"] if newest is not None else "")
                for key in keys - self._learned - {""}:
                    await self._learn_from(key)
            self._learned |= keys

    async def _learn_from(self, key: str) -> None:
        with contextlib.suppress(errors.CheckpointError):  # Of another one there may be more to hear.
            manifest_key = layout.parse_key(key).manifest_key
            manifest = Manifest.from_json(await read_json(self.store, manifest_key), where=manifest_key)
            for stored in objects_of(key, manifest):
                self._writer.earlier.add(*stored)

    async def gather(self, identity: str, timeout_s: float, decides: bool) -> None:
        if identity in self._gathering:
            self._gathering[identity].shorten(timeout_s)
            return
        patience = self._gathering[identity] = Patience(timeout_s, decides=decides)
        said = ""

        async def tell(why: str) -> None:
            nonlocal said
            if why != said:
                said = why
                await self.send({"op": "waiting", "id": identity, "why": why})

        try:
            item = await self._read(identity)
            committed = await self._collective.gather(item.reference, patience, tell)
            # The metadata is the same on all ranks, and may be larger than a frame.
            told = {name: value for name, value in committed.items() if name != "metadata"}
            answer: Message = {"op": "committed", "id": identity, "reference": told}
        except Exception as error:
            # What the ranks have decided is never tried again.
            answer = {**_failed(identity, error), "decided": isinstance(error, errors.UsageError)}
        del self._gathering[identity]
        await self.send(answer)

    async def claim(self, order: Message) -> None:
        task = dataclasses.replace(self._spool.task, attempt=order["attempt"])
        try:
            if "start" in order:
                claim = await starts.note(self.store, task, order["start"], order["who"])
            else:
                claim = await starts.claim(self.store, task, order["who"])
            answer: Message = {"start": claim.start, "first": claim.first, "why": claim.why[:_MAX_WHY]}
        except Exception as error:
            answer = _failed("", error)
        await self.send({**answer, "op": "claimed", "id": "", "attempt": order["attempt"]})

    async def annotate(self, order: Message) -> None:
        try:
            added = self._spool.annotations.read(order["name"])
            if added is None:
                raise errors.SpoolError(
                    "What was added to a checkpoint's metadata cannot be read", where=self._spool.directory
                )
            found = await annotate(
                self.store, added.key, added.pathspec, added.metadata, self._config.metadata_bytes
            )  # fmt: skip
            self._retention.forget(added.key)
            answer: Message = {"metadata": metrics_of(found)}
        except Exception as error:
            answer = _failed("", error)
        await self.send({**answer, "op": "annotated", "id": ""})

    async def retain(self) -> None:
        keys: list[str] = []
        try:
            keys = await self._retention.candidates()
        except Exception as error:
            self._retention.notice = f"Which checkpoints are not to be kept cannot be told: {_why(error)}"
        await self.send({"op": "candidates", "id": "", "keys": keys, "more": self._retention.has_more})

    async def remove(self, keys: list[str]) -> None:
        # What is copied from in this moment can be removed the next time.
        used = self._writer.copied_from()
        removed = await self._retention.remove([key for key in keys if not any(layout.is_in(one, key) for one in used)])
        await self.send({"op": "removed", "id": "", "keys": removed})

    async def card(self, facts: Message) -> None:
        try:
            if self._card is None:
                store = open_store(StoreSpec.from_json(facts["store"]), self._config)
                self._card = CardWriter(store, self._spool.task, self._spool.directory, REAL_CLOCK)
            await self._card.write({name: value for name, value in facts.items() if name not in ("op", "id", "store")})
        except Exception as error:
            self._notice = f"The card cannot be written: {_why(error)}. Checkpoints are not touched by that"
        await self.send({"op": "card", "id": "", "state": facts["state"]})

    async def gone(self, attempt: int) -> None:
        task = self._spool.task
        with contextlib.suppress(errors.CheckpointError):  # The others wait, as long as they would without it.
            await agreement.put_gone(self.store, task.pathspec, attempt, task.node, self._spool.versions.ranks(attempt))
        await self.send({"op": "gone", "id": ""})

    async def aclose(self) -> None:
        await self.store.aclose()
        if self._card is not None:
            await self._card.aclose()

    def pace(self, bytes_per_s: int) -> None:
        if not self.store.pace(bytes_per_s) and bytes_per_s:
            self._notice = f"{self.store.root} is no store that can be written to slowly: uploads take all there is"

    def pause(self, identity: str) -> None:
        for scopes in (self._uploads, self._commits):
            if identity in scopes:
                scopes.pop(identity).cancel()

    async def commit(self, batch: list[str]) -> None:
        count = 0
        unread = ""
        error: Exception | None = None

        async def note(reference: dict[str, Any]) -> None:
            """The next one may never be answered. Of the last one the agent hears when ``latest`` has moved as well: if
            this uploader dies before, another one commits it again, and moves that.
            """
            nonlocal count
            count += 1
            if count < len(batch):
                with anyio.CancelScope(shield=True):
                    await self.send({"op": "committed", "id": batch[count - 1]})

        with anyio.CancelScope() as scope:
            self._commits.update(dict.fromkeys(batch, scope))
            try:
                references = [(await self._read(unread := identity)).reference for identity in batch]
                unread = ""
                await self._writer.commit(references, note)
            except Exception as raised:
                error = raised
        self._commits = {identity: other for identity, other in self._commits.items() if other is not scope}
        if count == len(batch):
            await self.send({"op": "committed", "id": batch[-1]})
        elif error is not None:
            await self.send(_failed(unread or batch[count], error))

    async def _read(self, identity: str) -> Admitted:
        item = await anyio.to_thread.run_sync(self._spool.records.read, identity)
        if item is None:
            # The agent makes it again.
            raise errors.TransientStoreError(
                f"The record of checkpoint {identity} is gone", where=self._spool.directory
            )
        return item

    async def send(self, message: Message) -> None:
        try:
            data = protocol.encode(message)
        except errors.ProtocolError as error:
            data = protocol.encode(_failed(message["id"], error))
        card = self._card.notice if self._card is not None else ""
        for notice in (self._writer.notice, self.store.notice, self._notice, card, self._retention.notice):
            if notice and notice not in self._told:  # Known since the first request: told before its outcome.
                self._told.add(notice)
                if self._alone:
                    print(notice, file=sys.stderr, flush=True)
                data = protocol.encode({"op": "notice", "id": "", "why": notice[:_MAX_WHY]}) + data
        async with self._sending:
            while data:
                try:
                    data = data[protocol.send(self._sock, data, []) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                except OSError:
                    return  # The agent is gone; reading sees it and ends the uploader.


def _failed(identity: str, error: Exception) -> Message:
    transient = isinstance(error, errors.TransientStoreError) or _is_shortage(error)
    refused = isinstance(error, errors.StoreError) and not isinstance(error, errors.IntegrityError) and not transient
    return {"op": "failed", "id": identity, "why": _why(error)[:_MAX_WHY], "transient": transient, "refused": refused}


def _why(error: Exception) -> str:
    # Others are bugs of ours or of a library, as a rule: what was to be done fails, the uploader goes on.
    return str(error) if isinstance(error, errors.CheckpointError) else f"{type(error).__name__}: {error}"


def _is_shortage(error: BaseException | None) -> bool:
    """Whether this machine lacks threads, memory or descriptors: that may pass, and says nothing of the store."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES):
            return True
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            return True
        error = error.__cause__
    return False


class _Reporter:
    """Collects what one upload tells and sends it on now and then; its Events."""

    def __init__(self, uploader: _Uploader, identity: str) -> None:
        self._uploader, self._identity = uploader, identity
        self._bytes = 0
        self._out: list[Message] = []

    def progress(self, count: int) -> None:
        self._bytes += count

    def copied(self, count: int) -> None:
        self._out.append({"op": "copied", "id": self._identity, "bytes": count})

    def note(self, line: Line) -> None:
        count = len(line.get("crc32", ()))
        if count > _MAX_DIGESTS:
            line = {name: value for name, value in line.items() if name != "digests"}
        if count <= _MAX_CRCS:
            self._out.append({"id": self._identity, **line})

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
            await anyio.sleep(REPORT_S)
            await self._report()

    async def _report(self) -> None:
        count, self._bytes = self._bytes, 0
        messages, self._out = self._out, []
        with anyio.CancelScope(shield=True):
            for message in messages:
                await self._uploader.send(message)
            if count:
                await self._uploader.send({"op": "progress", "id": self._identity, "bytes": count})


def main(arguments: list[str]) -> None:
    """Entry point of the uploader's process: ``uploader <descriptor of the socket> <spool>``."""
    fd, directory = int(arguments[0]), arguments[1]
    # Whoever ends everything on this machine: the agent closes our socket, or the kernel ends us with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    set_priority(idle=True)
    with socket.socket(fileno=fd) as sock:
        try:
            anyio.run(partial(serve, sock, Spool.open(directory), Config.from_env(), alone=True))
        except errors.CheckpointError as error:
            sys.exit(f"async_ckpt uploader: {error}")


def _die_with_parent() -> None:
    """Be killed when the agent is: an upload that nobody orders any more must not go on."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:
        sys.exit("async_ckpt uploader: the agent is gone")
