"""Saving, listing, loading and flushing for one task; what the decorator, ``Checkpoint`` and the command line stand
on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import capture, layout
from ..agent.backlog import await_release, await_room
from ..agent.launch import Launcher
from ..capture.safe_links import SafeLinks, ranks_here
from ..config import ENV_ATTEMPT, ENV_SPOOL, NO_AGENT_LOOK_S, NO_AGENT_START_S, Config
from ..errors import AgentError, NoAgent, SnapshotError, SpoolError, StoreError, UsageError, WaitTimeout
from ..ipc.client import AgentClient, Lease
from ..manifest import Manifest
from ..metadata import Note, Said, plain
from ..ranks.who import Ranks
from ..spool import journal, place
from ..spool.environment import spool_of
from ..spool.spool import Admitted, Spool
from ..stores.base import StoreSpec
from ..system.files import given_path, occupy_standard_streams
from ..system.handlers import put_off
from ..system.printable import to_stderr
from ..system.undisturbed import go_on, run, undisturbed
from .loader import Report
from .options import SaveOptions
from .reference import Reference
from .tracker import Following

_STARTS = 3
#: Whoever may have so many has some left: they are not counted, which takes long where there are many.
_MANY_DESCRIPTORS = 1 << 14
#: Of more links it is not said what became of them.
_LINKS_SAID = 1000

_of_this_process: dict[tuple[int, str, str | None], Checkpointer] = {}


class Checkpointer(Following):
    """One process's access to the checkpoints of a task.

    Parameters
    ----------
    spool : Spool
        The task's; its ``task.attempt`` is the attempt saves belong to.
    uploader : str
        ``"process"`` or ``"thread"``: what is started where no agent runs.
    owner : bool
        True in the task's own process: the agent is started now and exits some time after this process.
    report : callable
        Gets lines for people, some from another thread: what failed, what was dropped, what of metadata is not kept.
    """

    def __init__(
        self,
        spool: Spool,
        config: Config,
        *,
        uploader: str = "process",
        owner: bool = False,
        lead: int = 0,
        report: Report = lambda line: None,
    ) -> None:
        occupy_standard_streams()
        super().__init__(spool, config, owner=owner, report=report)
        self._launcher = Launcher(spool, config, uploader, self._say_once)
        self._client = AgentClient(
            self._launcher.connect, owner=owner, config=config, attempt=self.task.attempt, lead=lead,
            access=os.environ.get(str(spool.store.options.get("access_from")), ""), on_push=self._on_push,
            on_answer=self._launcher.on_answer, on_silence=self._launcher.on_silence,
        )  # fmt: skip
        self._habits, self._copy_speed, self._said_copied = spool.habits(), spool.copy_speed(), False
        self._said = Said(self._report)
        #: What the store refused, by id, until a save has said so.
        self._refused: dict[str, str] = {}
        self._noticed: set[str] = set()
        #: Paths, below what was saved, of links of which was said what became of them.
        self._links_said: set[str] = set()
        #: By rank and launch: turns in collective saves that could not be counted yet.
        self._owed: Counter[tuple[int, str]] = Counter()

    @classmethod
    def start(
        cls,
        places: str | Sequence[Sequence[str]],
        task: layout.TaskInfo,
        store: StoreSpec,
        config: Config,
        *,
        uploader: str,
        lead: int = 0,
        report: Report = lambda line: None,
    ) -> Checkpointer:
        """The checkpointer of a task's own process: makes the spool, or takes up an earlier attempt's, and starts the
        agent. ``places``: a directory for spools, or ``spool.place.places``. ``lead``: see ``AgentClient``.

        Raises
        ------
        SpoolError, AgentError
            One of the two cannot be had.
        """
        for _ in range(_STARTS):
            try:
                spool = place.make([[places]] if isinstance(places, str) else places, task, store, report)
            except SpoolError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # As below.
                raise
            checkpointer = cls(spool, config, uploader=uploader, owner=True, lead=lead, report=report)
            is_there = False
            try:
                spool.begin()
                left = spool.ready_ids()
                is_there = checkpointer._attach()
            except (AgentError, SpoolError, WaitTimeout):
                if os.path.exists(spool.path("spool.json")):
                    checkpointer._client.close()
                    raise
            if not is_there:
                # An agent that had drained an earlier attempt may have removed the spool in this moment; then there
                # is nothing left to take up, and a new one is made.
                checkpointer._client.close()
                continue
            if left:
                # Nobody may guard it any more, until the agent does: it is not to be written to before.
                with contextlib.suppress(AgentError, WaitTimeout):
                    checkpointer._client.request("state", config.reply_timeout_s, id="")
            return checkpointer
        raise AgentError(
            "The spool is removed again and again",
            where=str(places),
            hint="See whether something cleans that directory",
        )

    def _attach(self) -> bool:
        """Have an agent. It may be the last attempt's, which hangs; or there may be none for a while. False: the spool
        is gone, and there is nothing any more to have one for.

        Raises
        ------
        AgentError, WaitTimeout
            None can be had.
        """
        deadline, said = time.monotonic() + NO_AGENT_START_S, False
        while True:
            try:
                self._client.attach()
                return True
            except (NoAgent, WaitTimeout) as error:
                if not os.path.exists(self.spool.path("spool.json")):
                    return False
                if time.monotonic() >= deadline:
                    raise
                if not said:
                    said = True
                    self._report(f"{error}. It is tried again for up to {NO_AGENT_START_S:g} s")
                time.sleep(NO_AGENT_LOOK_S)

    @classmethod
    def from_environment(cls) -> Checkpointer:
        """The checkpointer of the task this process was started by.

        Raises
        ------
        UsageError
            No task's environment, or one that is not as a task makes it: it says what to do.
        SpoolError
            The task has ended.
        """
        directory, attempt = os.environ.get(ENV_SPOOL), os.environ.get(ENV_ATTEMPT)
        if not directory:
            raise UsageError(
                f"This process does not belong to a step with @checkpoint ({ENV_SPOOL} is not set)",
                hint="Save inside such a step or in a subprocess that inherits its environment; to read, name a task",
            )
        found = _of_this_process.get((os.getpid(), directory, attempt))
        if found is None:
            spool = spool_of(directory, attempt)
            # Kept: each has a thread and a connection, and people make a Checkpoint() for every save.
            _of_this_process.clear()
            found = _of_this_process[os.getpid(), directory, attempt] = cls(spool, Config.from_env(), report=to_stderr)
        return found

    def _check_attempt(self) -> None:
        """Raise ``SpoolError`` in a process that has outlived its task; the task's own knows how it stands."""
        if self._owned_by != os.getpid() and not self._closed:
            self.spool.check_attempt()

    # -- saving ----------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        check: Callable[[str], None] | None = None,
        origin: str | None = None,
        wait: bool = True,
        **options: Any,
    ) -> Reference:
        """Snapshot a file or directory and admit it; the upload happens later.

        Parameters
        ----------
        path : str or PathLike
            What is saved.
        check : callable, optional
            Called when all is captured, with the path that was captured; what it raises is raised, and nothing was
            saved.
        origin : str, optional
            Where ``path`` was captured from, if that stands in for something else.
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
        metadata, notes = plain(given.metadata, self.config)
        return self._save(path, replace(given, metadata=metadata), notes, check, origin, wait)

    @put_off
    def _save(
        self, path: str | os.PathLike[str], options: SaveOptions, notes: list[Note],
        check: Callable[[str], None] | None, origin: str | None, wait: bool,
    ) -> Reference:  # fmt: skip
        if self._closed:
            raise UsageError("The step has ended: nothing can be saved any more", hint="Save before the step returns")
        if self.spool.start is None:
            with self._while_it_runs():
                run(self.started)
        shard = options.ranks(self.task)
        # Before anything can go wrong: whoever fails here has had its turn, like all other ranks.
        version = self._take_turn(shard, os.path.dirname(os.path.abspath(os.fsdecode(path)))) if shard else None
        source = given_path(path)
        options = options.checked()
        self._said.say(notes)

        def describe(size: int) -> dict[str, Any]:
            return layout.reference(
                self.task, name=options.name, version=self.spool.next_version() if version is None else version,
                url=self.spool.store.root, size=size, metadata=options.metadata, storage_format=options.storage_format,
                latest=bool(options.latest), shard=shard[:2] if shard else None,
            )  # fmt: skip

        with self._while_it_runs():
            admitted = self._capture_as_soon_as_there_is_room(
                source, options.snapshot, describe, check, origin or source, ranks_here() if shard else 1, wait
            )
        self._saved[admitted.id] = admitted.reference
        if self._refused:
            self._say_what_was_refused()
        return Reference(admitted.reference, self)

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
            with self._while_it_runs():
                self.started()
                return self.task.key(text, self.spool.upcoming_version())
        if not str(version).isdecimal():
            raise UsageError(f"version_id={version!r} is not the number of a version", hint="They count from 0")
        return self.task.key(text, int(version))

    def new_held_directory(self, path: str) -> str:
        """A name for a directory of the spool in which ``path`` is captured before it counts as a checkpoint; on its
        file system if that can be. It is swept up after this process.
        """
        return self.spool.new_held_directory(path)

    def _capture_as_soon_as_there_is_room(self, *arguments: Any) -> Admitted:
        """The disk may have looked as if there were, and turned out to be full, or its quota used up."""
        while True:
            try:
                return self._capture_and_admit(*arguments)
            except (SnapshotError, SpoolError) as error:
                if not await_release(self._client, self.spool, self.config, error):
                    raise

    def _capture_and_admit(
        self,
        source: str,
        snapshot: str,
        describe: Callable[[int], dict[str, Any]],
        check: Callable[[str], None] | None,
        origin: str,
        savers: int,
        wait: bool,
    ) -> Admitted:
        """``describe`` makes the reference, given the size in bytes; ``savers``: see ``SafeLinks``."""
        occupy_standard_streams()
        await_room(self._client, self.spool, self.config, os.path.dirname(source), wait=wait)
        guarded = self._client.is_guarded()
        capture.check_strategy(snapshot, leases=guarded)
        data, captured_ns = self.spool.new_data_directory(source), time.time_ns()
        limit = SafeLinks(self._habits, self._copy_speed, source, os.path.dirname(data), savers)
        captured = capture.capture(
            source, data, snapshot, guarded=guarded, config=self.config, lease_budget=self._lease_budget(), limit=limit
        )
        try:
            if check is not None:
                check(source)
            reference = describe(captured.manifest.size)
            if reference["storage_format"] == "files" and self.spool.store.kind != "local":
                _check_object_names(reference["url"], captured.manifest, source)
            go_on()
            admitted = self.spool.admit(reference, captured.manifest, data, origin, captured_ns)
        except BaseException:
            captured.drop(data)
            raise
        self._guard(admitted, captured.leases)
        if limit.copied and not self._said_copied:
            self._said_copied = True
            self._report(limit.report())
        if captured.followed:
            self._say_what_links_became(source, captured.followed)
        return admitted

    def _say_what_links_became(self, source: str, links: list[str]) -> None:
        """Once for links of a name: with every save of a trainer they are the same ones, in a new directory."""
        names = {os.path.relpath(link, source): link for link in links}
        new = [link for name, link in names.items() if name not in self._links_said]
        if not new or len(self._links_said) >= _LINKS_SAID:
            return
        self._links_said.update(names)
        more = {0: "", 1: "; so is 1 more"}.get(len(new) - 1, f"; so are {len(new) - 1} more")
        self._report(f"The symbolic link {new[0]} leads out of {source}, and is saved as what it points to{more}")

    def _take_turn(self, shard: Ranks, folder: str) -> int:
        """The version of a collective save. A turn that cannot be counted now is made up for by the next one: else this
        rank would save its parts of later checkpoints into earlier ones, for ever.
        """
        who = shard.rank, shard.launch
        turns = 1 + self._owed.pop(who, 0)
        try:
            with self._while_it_runs():
                try:
                    return self.spool.next_collective(*who, turns)
                except SpoolError:
                    await_room(self._client, self.spool, self.config, folder)  # The disk may be full.
                    return self.spool.next_collective(*who, turns)
        except BaseException:
            self._owed[who] += turns
            raise

    def _on_push(self, push: Mapping[str, Any]) -> None:
        identity, why = str(push.get("id")), str(push.get("why"))
        if push["push"] == "notice":
            self._say_once(why)
        elif push["push"] == "superseded":
            self._report(f"Checkpoint {identity} was {why}")
        elif push["push"] == "given up":
            ids = list(map(str, push.get("ids", [])))
            more = int(push.get("count", 0)) - len(ids)
            shown = ", ".join(ids) + (f" and {more} more" if more > 0 else "")
            beside = ", ".join(map(str, push.get("beside", [])))
            first = f"{identity} goes first{f', beside it {beside}' if beside else ''}"
            self._report(f"{why}: {first}; given up, unless there is time left over: {shown}")
        elif push["push"] == "failed":
            mine = identity.startswith(f"{self.task.attempt}.")
            if mine and push.get("refused"):
                self._refused[identity] = why
            end = ", and the step will fail at its end" if mine and self.config.on_failure == "raise" else ""
            self._report(f"Checkpoint {identity} is not in the store{end}: {why}")

    def _say_once(self, why: str) -> None:
        """Once a task, however often the agent is started again."""
        if why not in self._noticed:
            self._noticed.add(why)
            self._report(why)

    def _say_what_was_refused(self) -> None:
        """Training for hours is no use where the store takes nothing: the next save says so, once.

        Not where it has taken a newer one since: then the flush says what is missing.
        """
        refused, self._refused = self._refused, {}
        if self.config.on_failure != "raise":
            return
        with contextlib.suppress(AgentError, WaitTimeout):
            last = journal.order(self.status()["last_committed"] or "")
            refused = {identity: why for identity, why in refused.items() if journal.order(identity) > last}
        if refused:
            identity = max(refused, key=journal.order)
            raise StoreError(
                f"The store refuses checkpoints; of {identity} it said: {refused[identity]}",
                hint="What was saved stays in the spool. on_failure='warn' goes on without the store",
            )

    def _guard(self, item: Admitted, leases: Mapping[str, int]) -> None:
        """Ring the doorbell, and have the leases (path → descriptor) of a checkpoint's files held."""
        entries = item.entries if leases else {}
        self._client.admit(
            item.id, {p: Lease(fd, item.file(p), entries[p].size, entries[p].mtime_ns) for p, fd in leases.items()}
        )

    def _lease_budget(self) -> int:
        """Leases are descriptors of the trainer: at most a quarter of those it may have, and half of what is left."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return max(self.config.max_leases - self._client.leases_held, 0)
        budget = min(self.config.max_leases, soft // 4) - self._client.leases_held
        if soft < _MANY_DESCRIPTORS:
            with contextlib.suppress(FileNotFoundError):  # No /proc: nobody tells.
                budget = min(budget, (soft - _descriptors(soft)) // 2)
        return max(budget, 0)

    # -- the end -------------------------------------------------------------------------------------------------------

    def hurry(self, seconds: float) -> list[str]:
        """See ``Following.hurry``; what hangs, or cannot be started, is waited for less as well."""
        self._launcher.hurry()
        return super().hurry(seconds)

    @undisturbed
    def hand_over(self) -> None:
        """The agent was killed and this process ends as well: see that another agent has its leases before.

        Raises
        ------
        AgentError, WaitTimeout
            There is none.
        """
        if self._client.leases_held:
            # Answered by nobody but the next one, which was sent the leases before: the connection to the one that was
            # killed may not have been seen to end yet.
            self._client.request("state", self.config.reply_timeout_s, id="")

    @undisturbed
    def close(self, *, clean: bool) -> None:
        """Let go of the agent: it finishes what is left and exits. ``clean``: the step is over, the spool is not
        needed again.
        """
        if self._closed:
            return
        self._look()
        self._closed = True
        self._client.say_goodbye(over=clean)
        self._client.close()
        self._launcher.join(self.config.reply_timeout_s)


def _descriptors(most: int) -> int:
    """How many this process has of those it may have."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return most


def _check_object_names(url: str, manifest: Manifest, source: str) -> None:
    """S3 has names of at most 1024 bytes of UTF-8: noticed now, not at the upload."""
    for path in [entry.path for entry in manifest.files] + [path for path, _ in manifest.files_behind_links()]:
        try:
            length = len(f"{url}/{path}".encode())
        except UnicodeEncodeError:
            length = -1
        if not 0 <= length <= 1024:
            raise SnapshotError(
                f"The store cannot have an object of the name of {path!r}: it is too long, or no UTF-8",
                where=os.path.join(source, os.fsdecode(os.fsencode(path))),
                hint="Use storage_format='tar'",
            )
