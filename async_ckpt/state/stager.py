"""Saving a state: it is planned as one file, copied into a buffer, and admitted as any other checkpoint.

Nothing is serialised: the plan says where each tensor's bytes lie in the file, and they are copied there. What happens
when, and what survives what, is told in docs/state.md.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..capture.snapshot import remove_snapshot
from ..config import COPY_THREADS, LOOK_S, MAX_STAGING
from ..errors import CheckpointError, SnapshotError, SpoolError, UsageError, os_hint, os_reason
from ..layout import identity
from ..manifest import Directory, FileEntry, Manifest
from ..metadata import plain
from ..ranks.who import Ranks
from ..system.clock import Moment, moment
from ..system.crash import crash_point
from ..system.files import pwrite_all
from ..system.handlers import Allowed, put_off
from ..task.checkpointer import Checkpointer
from ..task.options import SaveOptions
from ..task.room import await_release
from .buffers import Buffer, Buffers
from .copies import Copies
from .device import Cuda
from .load import rank_folder
from .optimizers import hold_optimizers
from .plan import Arrangements, Plan, plan
from .read import PICKLE_FILE, STATE_FILE, STRUCTURE_FILE
from .reference import Staging, StateReference

log = logging.getLogger(__name__)

#: When ``save_state`` returns: when the state is copied, or when its copy is under way.
STAGINGS = ("sync", "async")

#: What a copy may fail with: a disk, or torch and its devices. Anything else was raised by a handler of a signal.
_OF_COPIES = (OSError, RuntimeError)


@dataclass
class _Work:
    """One state to be copied into a buffer, and from there into the spool.

    Parameters
    ----------
    most_bytes : int
        As of ``Buffers.take``.
    began : Moment
        When its state was taken.
    asked_s : float
        When the save was asked for (monotonic seconds).
    blocked_s : float
        For how many seconds whoever trains was held up; 0: it is, until this is admitted.
    """

    reference: dict[str, Any]
    ranks: Ranks | None
    plan: Plan
    buffer: Buffer
    copies: Copies
    most_bytes: int
    began: Moment
    staging: Staging
    asked_s: float
    blocked_s: float = 0.0


class StateSaver:
    """Saves states with a task's ``Checkpointer``, in one process."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._saver, self._tracker, self._config = checkpointer.saver, checkpointer.tracker, checkpointer.config
        self._spool = checkpointer.spool
        self._cuda: Cuda | None = None
        self._arrangements = Arrangements()
        self._buffers = Buffers(self._spool, self._config, self._pin, self._unpin)
        self._slots = threading.BoundedSemaphore(MAX_STAGING)
        # Kept, as to start a thread takes long beside a training that has all cores. A process that ends now ends when
        # they have done what they were given.
        self._threads = ThreadPoolExecutor(MAX_STAGING, "async_ckpt-stager")
        self._tracker.look()  # In a forked child it then knows nothing of what its parent copies.

    @put_off  # A handler may save as well, and wait for the locks that are held here.
    def save(
        self,
        state: Any,
        *,
        staging: str = STAGINGS[0],
        max_host_bytes: int = 0,
        pickle: bool = False,
        **options: Any,
    ) -> StateReference:
        """See ``current.checkpoint.save_state``; ``options`` are those of ``SaveOptions``."""
        if staging not in STAGINGS:
            raise UsageError(f"staging={staging!r} is unknown", hint=f"Use one of {', '.join(STAGINGS)}")
        if isinstance(state, (str, os.PathLike)):
            raise UsageError(
                f"The state is a path, {os.fspath(state)!r}",
                hint="save() saves files; give save_state() the values: {'model': model.state_dict(), ...}",
            )
        if max_host_bytes < 0:
            raise UsageError(f"max_host_bytes={max_host_bytes} is less than nothing")
        asked_s = self._tracker.client.clock.monotonic()
        given = SaveOptions(**options)
        metadata, notes = plain(given.metadata, self._config)
        planned = plan(state, pickle=pickle, known=self._arrangements)
        size = planned.size + len(planned.structure) + len(planned.pickled or b"")
        reference, ranks = self._saver.begin_staged(replace(given, metadata=metadata), notes, size)
        buffer = self._take_buffer(planned.size, max_host_bytes)
        began = moment(self._tracker.client.clock)
        try:
            copies = Copies(planned, buffer, self._cuda_of(planned), check=self._config.check_state)
        except BaseException:
            buffer.give_back()
            raise
        on_way = Staging(copies.hold_training)
        made = _Work(reference, ranks, planned, buffer, copies, max_host_bytes, began, on_way, asked_s)
        handle = StateReference.of(reference, on_way, self._tracker)
        if staging == "sync":
            try:
                self._complete(made, threads=COPY_THREADS)
            except _OF_COPIES as error:
                raise on_way.error or _explained(error, buffer.path) from error
            finally:
                on_way.end()
                self._later(partial(self._spare, planned.size, max_host_bytes))
        else:
            self._complete_later(made, handle.id)
            if any(piece.watched for piece in planned.pieces):
                hold_optimizers(on_way)
        self._tracker.due.saved(began, latest=bool(given.latest))
        self._saver.say_what_was_refused()
        return handle

    def _take_buffer(self, size: int, most_bytes: int) -> Buffer:
        while True:
            try:
                return self._buffers.take(size, most_bytes)
            except SpoolError as error:
                # What waits for the store has the room now.
                if not await_release(self._tracker.client, self._spool, self._config, error):
                    raise

    # -- copying and admitting -------------------------------------------------------------------------------------

    def _complete_later(self, made: _Work, identity: str) -> None:
        try:
            self._take_slot()
            try:
                # What devices copy is enqueued now, so that it comes before whatever the training does next.
                made.copies.begin()
            except BaseException:
                self._slots.release()
                raise
        except BaseException as error:
            made.buffer.give_back()
            if isinstance(error, _OF_COPIES):
                raise _explained(error, made.buffer.path) from error
            raise
        on_way = made.staging
        made.blocked_s = self._tracker.client.clock.monotonic() - made.asked_s
        self._tracker.staging[identity] = on_way.ended

        def work() -> None:
            try:
                self._complete(made, threads=1)  # The other cores are the training's.
            except Exception as error:
                on_way.error = on_way.error or _explained(error, made.buffer.path)
                self._tracker.not_staged[identity] = str(on_way.error)
                log.error(f"Checkpoint {identity} is not saved: {on_way.error}")
            finally:
                self._slots.release()
                on_way.end()
                del self._tracker.staging[identity]
            self._spare(made.plan.size, made.most_bytes)

        self._later(work)

    def _take_slot(self) -> None:
        while not self._slots.acquire(blocking=False):
            with Allowed():  # Only here: a handler that raises must not take a slot with it.
                for ended in list(self._tracker.staging.values())[:1]:
                    ended.wait(LOOK_S)

    def _later(self, work: Callable[[], None]) -> None:
        """Do it in another thread; in this one, if there can be no more, as when the interpreter ends."""
        begun = threading.Lock()

        def once() -> None:
            if begun.acquire(blocking=False):
                try:
                    work()
                except Exception:
                    log.exception("What was left to do of a save has failed")

        try:
            self._threads.submit(once)
        except RuntimeError:  # What was handed over may be done all the same, by a thread that there is.
            once()

    def _spare(self, size: int, most_bytes: int) -> None:
        """The next save may come before the store has this one: it then finds a buffer."""
        if not self._tracker.closed:  # What is made now would be left.
            self._buffers.spare(size, most_bytes)

    def _complete(self, made: _Work, *, threads: int) -> None:
        """Copy what is left to copy, and admit."""
        try:
            try:
                made.copies.begin()
                made.copies.finish(threads=threads)
            except Exception as error:
                made.staging.error = _explained(error, made.buffer.path)
                raise
            finally:
                made.staging.copied.set()
            crash_point("state:copied")
            self._admit(made)
        finally:
            made.buffer.give_back()

    def _admit(self, made: _Work) -> None:
        try:
            self._admit_from(made, made.buffer)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOENT) or made.buffer.memory is None:
                raise
            # The state has all of the memory that there is, so that its structure finds no room beside it; or something
            # has removed the buffer's name. Its memory is still here.
            on_disk = self._buffers.in_spool(made.plan.size, f"{made.buffer.path}: {os_reason(error)}")
            try:
                pwrite_all(on_disk.fd, memoryview(made.buffer.memory), 0)
                self._admit_from(made, on_disk)
            finally:
                on_disk.give_back()

    def _admit_from(self, made: _Work, buffer: Buffer) -> None:
        folder = rank_folder(made.ranks.rank) if made.ranks else ""
        data = self._spool.snapshots.new_directory_beside(buffer.path)
        manifest = Manifest(dirs=[Directory(folder, 0o755, made.began.wall_ns)] if folder else [])

        def add(name: str, size: int) -> str:
            path = os.path.join(folder, name)
            manifest.files.append(FileEntry(path, size, 0o644, mtime_ns=made.began.wall_ns))
            return os.path.join(data, path)

        try:
            os.mkdir(data, 0o700)
            if folder:
                os.mkdir(os.path.join(data, folder), 0o700)
            buffer.move_to(add(STATE_FILE, made.plan.size))
            crash_point("state:linked")
            _write(add(STRUCTURE_FILE, len(made.plan.structure)), made.plan.structure)
            if made.plan.pickled is not None:
                _write(add(PICKLE_FILE, len(made.plan.pickled)), made.plan.pickled)
            blocked_s = made.blocked_s or self._tracker.client.clock.monotonic() - made.asked_s
            self._saver.admit_staged(made.reference, manifest, data, made.began, blocked_s)
            crash_point("state:admitted")
        except BaseException:
            if identity(made.reference) not in self._spool.records:  # Else it is a checkpoint already, whatever came.
                remove_snapshot(data)
            raise

    # -- devices ---------------------------------------------------------------------------------------------------

    def _cuda_of(self, planned: Plan) -> Cuda | None:
        if self._cuda is None and any(
            piece.address == -1 and getattr(piece.source, "is_cuda", False) for piece in planned.pieces
        ):
            import torch

            self._cuda = Cuda(torch.cuda)
            self._buffers.each(self._pin)
        return self._cuda

    def _pin(self, buffer: Buffer) -> None:
        if self._cuda is not None and buffer.memory is not None:
            self._cuda.pin(buffer.address, buffer.size)

    def _unpin(self, buffer: Buffer) -> None:
        if self._cuda is not None and buffer.memory is not None:
            self._cuda.unpin(buffer.address)


_savers: weakref.WeakKeyDictionary[Checkpointer, tuple[int, StateSaver]] = weakref.WeakKeyDictionary()
_making = threading.Lock()
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


@put_off
def state_saver(checkpointer: Checkpointer) -> StateSaver:
    """The one of this process; a forked child gets its own."""
    with _making:
        pid, saver = _savers.get(checkpointer, (0, None))
        if saver is None or pid != os.getpid():
            saver = StateSaver(checkpointer)
            _savers[checkpointer] = os.getpid(), saver
        return saver


def _explained(error: Exception, path: str) -> CheckpointError:
    """Why a state is not saved."""
    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, OSError):
        explained: CheckpointError = SpoolError(
            f"The state cannot be written to the spool: {os_reason(error)}", where=path, hint=os_hint(error)
        )
    else:
        explained = SnapshotError(f"The state cannot be copied: {type(error).__name__}: {error}")
    explained.__cause__ = error
    return explained


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
