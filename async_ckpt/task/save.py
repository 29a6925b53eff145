"""Saving: a file or directory is captured, and admitted for the agent to upload."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import capture, layout
from ..capture.safe_links import SafeLinks, ranks_here
from ..errors import AgentError, SnapshotError, SpoolError, StoreError, UsageError, WaitTimeout
from ..manifest import Manifest
from ..metadata import MetadataNote, NoteLog, plain
from ..ranks.who import Ranks
from ..spool import journal
from ..spool.records import Admitted
from ..system.clock import Moment, moment
from ..system.files import given_path, occupy_standard_streams
from ..system.handlers import put_off
from ..system.undisturbed import go_on, run, undisturbed
from .agent_messages import AgentMessages
from .options import SaveOptions
from .reference import Reference
from .room import await_release, await_room
from .tracker import Tracker

log = logging.getLogger(__name__)

#: Of more links it is not said what became of them.
_MOST_LINKS_SAID = 1000


class Saver:
    """Saves into a task's spool; a ``Tracker`` then follows what was saved."""

    def __init__(self, tracker: Tracker, messages: AgentMessages) -> None:
        self._tracker, self._messages = tracker, messages
        self._spool, self._config, self._task = tracker.spool, tracker.config, tracker.task
        self._habits, self._copy_speed = tracker.spool.habits(), tracker.spool.copy_speed()
        self._notes = NoteLog(log.warning)
        #: Whether it was said why files are copied that could be linked.
        self._has_said_why_copied = False
        #: Paths, below what was saved, of links of which was said what became of them.
        self._links_said: set[str] = set()
        #: By rank and launch: turns in collective saves that could not be counted yet.
        self._uncounted_turns: Counter[tuple[int, str]] = Counter()

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        check: Callable[[], None] | None = None,
        saved_path: str | None = None,
        written_ns: int | None = None,
        wait: bool = True,
        **options: Any,
    ) -> Reference:
        """Snapshot a file or directory and admit it; the upload happens later.

        Parameters
        ----------
        path : str or PathLike
            What is saved.
        check : callable, optional
            Called when all is captured; what it raises is raised, and nothing was saved.
        saved_path : str, optional
            Where ``path`` was captured from, if that stands in for something else.
        written_ns : int, optional
            When its newest file was written (wall time, nanoseconds), where its state is as old as that.
        wait : bool
            Where the backlog is full: do as ``on_backlog`` says; else that is an error at once.
        options
            See ``SaveOptions``. Metadata never fails a save: see ``metadata.plain`` for what becomes of it.

        Raises
        ------
        UsageError
            An argument is not valid.
        SnapshotError, SpoolError
            The path cannot be captured, the spool's disk is full, or this process has outlived its task; nothing was
            saved, and ``path`` is untouched.
        BacklogError
            Too much waits for the store already, and ``on_backlog`` says so, or the wait for room was too long.
        StoreError
            The store refuses what was saved before (``on_failure="raise"``); this one is admitted all the same.
        """
        given = SaveOptions(**options)
        # The user's objects are asked in the user's thread.
        metadata, notes = plain(given.metadata, self._config)
        return self._save(path, replace(given, metadata=metadata), notes, check, saved_path, written_ns, wait)

    @put_off
    def _save(
        self, path: str | os.PathLike[str], options: SaveOptions, notes: list[MetadataNote],
        check: Callable[[], None] | None, saved_path: str | None, written_ns: int | None, wait: bool,
    ) -> Reference:  # fmt: skip
        began_s = self._tracker.client.clock.monotonic()
        shard = self._begin(options)
        # Before anything can go wrong: whoever fails here has had its turn, like all other ranks.
        version = self._take_turn(shard, os.path.dirname(os.path.abspath(os.fsdecode(path)))) if shard else None
        path = given_path(path)
        options = options.checked()
        self._notes.say(notes)
        with self._tracker.while_it_runs():
            while True:
                try:
                    admitted = self._capture_and_admit(
                        path, options, shard, version, check, saved_path or path, written_ns, wait, began_s
                    )
                    break
                except (SnapshotError, SpoolError) as error:
                    # The disk may have looked as if there were room, and turned out to be full, or its quota used up.
                    if not await_release(self._tracker.client, self._spool, self._config, error):
                        raise
        self._tracker.saved[admitted.id] = admitted.reference
        if written_ns is None:  # Else a watch has saved what it was not asked for.
            self._tracker.due.saved(admitted.captured, latest=layout.is_latest(admitted.reference))
        self.say_what_was_refused()
        return Reference(admitted.reference, self._tracker)

    def _begin(self, options: SaveOptions) -> Ranks | None:
        """See that this attempt runs, and that it is known which start of it this is. Returns the ranks."""
        if self._tracker.closed:
            raise UsageError("The step has ended: nothing can be saved any more", hint="Save before the step returns")
        if self._spool.start is None:
            with self._tracker.while_it_runs():
                run(self._tracker.wait_for_start)
        return options.ranks(self._task)

    def _reference(self, options: SaveOptions, ranks: Ranks | None, version: int | None, size: int) -> dict[str, Any]:
        """What users get of a checkpoint, with the next version unless it has one."""
        return layout.reference(
            self._task, name=options.name, version=self._spool.versions.next() if version is None else version,
            url=self._spool.store.root, size=size, metadata=options.metadata, storage_format=options.storage_format,
            latest=bool(options.latest), shard=ranks[:2] if ranks else None,
        )  # fmt: skip

    @put_off
    def begin_staged(
        self, options: SaveOptions, notes: list[MetadataNote], size: int
    ) -> tuple[dict[str, Any], Ranks | None]:
        """Begin to save what is copied into place piece by piece: it gets its version now, and is admitted later.

        Parameters
        ----------
        options : SaveOptions
            With metadata as ``metadata.plain`` returns it.
        size : int
            Bytes, of all files.

        Returns
        -------
        tuple
            The reference, for ``admit_staged``, and the ranks that save together.

        Raises
        ------
        UsageError, SpoolError, BacklogError
            As ``save``.
        """
        ranks = self._begin(options)
        version = self._take_turn(ranks, self._spool.directory) if ranks else None
        options = options.checked()
        self._notes.say(notes)
        with self._tracker.while_it_runs():
            await_room(self._tracker.client, self._spool, self._config, self._spool.directory)
            self._tracker.client.is_guarded()  # Connects to the agent, so that the doorbell is heard.
            return self._reference(options, ranks, version, size), ranks

    def admit_staged(
        self, reference: dict[str, Any], manifest: Manifest, data: str, began: Moment, blocked_s: float
    ) -> None:
        """Admit what was begun with ``begin_staged``, from any thread. No lease guards it: nobody writes to it.

        Parameters
        ----------
        data : str
            The snapshot's directory; the caller's to drop if this raises.
        began : Moment
            When its state was taken.
        blocked_s : float
            For how many seconds whoever trains was held up.

        Raises
        ------
        SpoolError
            The record cannot be written, or this process has outlived its task.
        """
        with self._tracker.while_it_runs():
            admitted = self._spool.records.admit(reference, manifest, data, data, began, blocked_s)
        self._tracker.client.announce(admitted, {})
        self._tracker.saved[admitted.id] = admitted.reference

    def say_what_was_refused(self) -> None:
        """Raise ``StoreError`` if the store has refused something since this was asked last."""
        if refused := self._messages.take_refused():
            self._say_what_was_refused(refused)

    @undisturbed
    def next_key(self, name: Any, version: int | str | None = None) -> str:
        """The key of this attempt's checkpoint of a name and version; without a version, that of the next save (not of
        a collective one) if nobody else in the task saves before.

        Raises
        ------
        UsageError
            There is no such name or version.
        SpoolError
            This process has outlived its task, or its spool cannot be read.
        """
        text = layout.check_name(name)
        if version is None:
            with self._tracker.while_it_runs():
                self._tracker.wait_for_start()
                return self._task.key(text, self._spool.versions.upcoming())
        if not str(version).isdecimal():
            raise UsageError(f"version_id={version!r} is not the number of a version", hint="They count from 0")
        return self._task.key(text, int(version))

    def _capture_and_admit(
        self, path: str, options: SaveOptions, shard: Ranks | None, version: int | None,
        check: Callable[[], None] | None, saved_path: str, written_ns: int | None, wait: bool, began_s: float,
    ) -> Admitted:  # fmt: skip
        occupy_standard_streams()
        client, folder = self._tracker.client, os.path.dirname(path)
        await_room(client, self._spool, self._config, folder, wait=wait)
        guarded = client.is_guarded()
        capture.check_strategy(options.snapshot, leases=guarded)
        data, began = self._spool.snapshots.new_directory(path), moment(client.clock)
        began = began if written_ns is None else began.back_to(written_ns)
        savers = ranks_here() if shard else 1
        limit = SafeLinks(self._habits, self._copy_speed, path, os.path.dirname(data), savers)
        budget = client.lease_budget() if guarded else 0
        captured = capture.capture(path, data, options.snapshot, self._config, lease_budget=budget, limit=limit)
        try:
            if check is not None:
                check()
            reference = self._reference(options, shard, version, captured.manifest.size)
            if options.storage_format == "files" and self._spool.store.path_on_disk is None:
                _check_object_names(reference["url"], captured.manifest, path)
            go_on()
            # What a watch saves holds up nobody. (What is left of this call takes some microseconds.)
            blocked_s = client.clock.monotonic() - began_s if written_ns is None else None
            admitted = self._spool.records.admit(reference, captured.manifest, data, saved_path, began, blocked_s)
        except BaseException:
            captured.drop(data)
            raise
        client.announce(admitted, captured.leases)
        if limit.copied and not self._has_said_why_copied:
            self._has_said_why_copied = True
            log.info(limit.report())
        if captured.followed:
            self._say_what_links_became(path, captured.followed)
        return admitted

    def _say_what_links_became(self, path: str, links: list[str]) -> None:
        """Once for links of a name: with every save of a trainer they are the same ones, in a new directory."""
        names = {os.path.relpath(link, path): link for link in links}
        new = [link for name, link in names.items() if name not in self._links_said]
        if not new or len(self._links_said) >= _MOST_LINKS_SAID:
            return
        self._links_said.update(names)
        more = {0: "", 1: "; so is 1 more"}.get(len(new) - 1, f"; so are {len(new) - 1} more")
        log.info(f"The symbolic link {new[0]} leads out of {path}, and is saved as what it points to{more}")

    def _take_turn(self, shard: Ranks, folder: str) -> int:
        """The version of a collective save. A turn that cannot be counted now is made up for by the next one: else this
        rank would save its parts of later checkpoints into earlier ones, for ever.
        """
        who = shard.rank, shard.launch
        turns = 1 + self._uncounted_turns.pop(who, 0)
        try:
            with self._tracker.while_it_runs():
                try:
                    return self._spool.versions.next_collective(*who, turns)
                except SpoolError:
                    await_room(self._tracker.client, self._spool, self._config, folder)  # The disk may be full.
                    return self._spool.versions.next_collective(*who, turns)
        except BaseException:
            self._uncounted_turns[who] += turns
            raise

    def _say_what_was_refused(self, refused: dict[str, str]) -> None:
        """Training for hours is no use where the store takes nothing: the next save says so, once.

        Not where it has taken a newer one since: then the flush says what is missing.
        """
        if self._config.on_failure != "raise":
            return
        with contextlib.suppress(AgentError, WaitTimeout):
            last = journal.order(self._tracker.status()["last_committed"] or "")
            refused = {identity: why for identity, why in refused.items() if journal.order(identity) > last}
        if refused:
            identity = max(refused, key=journal.order)
            raise StoreError(
                f"The store refuses checkpoints; of {identity} it said: {refused[identity]}",
                hint="What was saved stays in the spool. on_failure='warn' goes on without the store",
            )


def _check_object_names(url: str, manifest: Manifest, folder: str) -> None:
    """S3 has names of at most 1024 bytes of UTF-8: noticed now, not at the upload."""
    for path in [entry.path for entry in manifest.files] + [path for path, _ in manifest.files_behind_links()]:
        try:
            length = len(f"{url}/{path}".encode())
        except UnicodeEncodeError:
            length = -1
        if not 0 <= length <= 1024:
            raise SnapshotError(
                f"The store cannot have an object of the name of {path!r}: it is too long, or no UTF-8",
                where=os.path.join(folder, os.fsdecode(os.fsencode(path))),
                hint="Use storage_format='tar'",
            )
