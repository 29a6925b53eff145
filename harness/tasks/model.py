"""A random life of a task against a model: saves, crashes, retries and bad weather, one small step after the other.

``single_thread.py`` says what is real and what is not, ``model_claims.py`` what must be true after each step. A failure
is shrunk by Hypothesis to the shortest life that shows it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import BacklogError, CheckpointError, FlushError, StoreError, WaitTimeout
from async_ckpt.manifest import LINK
from async_ckpt.spool.journal import COMMITTED, FAILED, SUPERSEDED
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.spool import Spool
from async_ckpt.task.checkpointer import Checkpointer
from harness.files.writers import content
from harness.kills.death_at_call import Fuse
from harness.stores.failing_store import DONE, DOWN, FAILS, FAIR, LOST, REFUSING
from harness.tasks.model_claims import DEATHS, OUTAGE, REFUSED, Expected, Files, Saved, read_tree
from harness.tasks.single_thread import World
from harness.tasks.task import TASK

#: What the trainer has, and how large: one file that is packed, two that are linked, one in a folder.
SIZES = {"step": 100, "weights": 5000, "frozen": 6000, "sub/state": 1500}
_PACK_BELOW = 1000

_SHORT_S, _LONG_S = 30.0, 600.0

#: A crash loop of agents, or of connections, is given up on; here each crash is one by itself.
_BETWEEN_CRASHES_S = 6.0

_SETTINGS = Config(
    pack_below_bytes=_PACK_BELOW, local_fsync=False, store_attempts=1, outage_s=60.0, drain_timeout_s=100.0,
    flush_timeout_s=_SHORT_S, backlog_timeout_s=_SHORT_S, min_free_bytes=0, spot_notice_file="",
)  # fmt: skip

_BACKLOGS = ({}, {"on_backlog": "supersede", "max_pending": 2}, {"on_backlog": "raise", "max_pending": 3})

_files = st.sets(st.sampled_from(sorted(SIZES)))
_name = st.sampled_from("ab")
_snapshot = st.sampled_from(["auto", "auto", "copy"])
_which = st.integers(0, 20)
_fates = st.lists(st.sampled_from([DONE, DONE, FAILS, LOST]), max_size=8)


class Trainer:
    """Writes files in a directory, each time with other content."""

    def __init__(self, world: World, expected: Expected, folder: str, files: Files) -> None:
        self._world, self._expected, self.folder, self.files = world, expected, folder, dict(files)

    def write(self, name: str, number: int, *, in_place: bool) -> None:
        """Over what is there, or into a new file that takes its name."""
        data = content(number, SIZES[name])
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if in_place and os.path.exists(path):
            fd = self._open(path)
            for saved in self._expected.sharing(os.fstat(fd).st_ino):
                saved.torn |= saved.unguarded
        else:
            fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.replace(f"{path}.new", path)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.truncate()
            file.flush()
            # Each at a time of its own, whatever the clock of the file system can tell apart.
            now = time.time_ns()
            os.utime(fd, ns=(now, now))
        self.files[name] = data

    def _open(self, path: str) -> int:
        """As a writer does, who waits for a lease; meanwhile the others have their turns."""
        for _ in range(1000):
            try:
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except BlockingIOError:
                self._world.wait(1.0)
        raise AssertionError(f"whoever writes to {path} waits for ever")


class Model(RuleBasedStateMachine):
    """``figures`` counts what happened, in all lives of this process."""

    figures: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="async-ckpt-model-"))
        self.attempt, self.number, self.deaths = -1, 0, 0
        self.task: Checkpointer | None = None

    @initialize(backlog=st.sampled_from(_BACKLOGS), max_uploads=st.integers(1, 2), slow_disk=st.booleans())
    def begin(self, backlog: dict[str, object], max_uploads: int, slow_disk: bool) -> None:
        """``slow_disk``: nothing can be copied away as fast as it would have to be, so all is, before anybody comes."""
        copy_away_s = 0.0 if slow_disk else _SETTINGS.copy_away_s
        self.world = World(self.base, replace(_SETTINGS, max_uploads=max_uploads, copy_away_s=copy_away_s, **backlog))
        self.expected = Expected(self.world)
        self.world.on_turn, self.world.on_commit = self.expected.look, self.expected.on_commit
        self.next_attempt()

    def teardown(self) -> None:
        try:
            if hasattr(self, "world") and sys.exc_info()[0] is None:
                self.come_to_rest()
        finally:
            if hasattr(self, "world"):
                self.world.close()
            shutil.rmtree(self.base)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "expected"):
            self.figures["steps"] += 1
            self.expected.check()

    # -- the task --------------------------------------------------------------------------------------------------

    has_task = precondition(lambda self: self.task is not None)
    has_saved = precondition(lambda self: self.task is not None and self.expected.saved)

    @precondition(lambda self: self.task is None)
    @rule()
    def next_attempt(self) -> None:
        """As the decorator begins it: what is newest is loaded."""
        self.attempt += 1
        self.expected.begin_attempt()
        task = replace(TASK, attempt=self.attempt)
        self.task = Checkpointer.start(self.world.root, task, self.world.store, self.world.config, uploader="process")
        self.task.spool.records.admit = self.admitting(self.task.spool)  # type: ignore[method-assign]
        self.saving: Files = {}
        work, files = self.task.spool.new_work_directory(), {}
        likely, fair = self.likely_newest(), self.world.sky.is_fair
        error = self.load_into(work, lambda: self.note_loaded(self.task.load_newest("fresh", work)))
        if error is None:
            assert self.loaded in likely, f"{self.loaded} was loaded, where {likely} was the newest"
            files = self.expected.saved[self.loaded].files if self.loaded else {}
        else:
            assert not fair, f"a retry cannot load: {error}"
        self.trainer = Trainer(self.world, self.expected, work, files)
        for name in SIZES.keys() - files.keys():
            self.write({name}, in_place=False)

    def likely_newest(self) -> list[str | None]:
        """What a retry may start with: the best first, and those that are as good, since nobody can be sure of them."""
        if self.attempt == 0:
            return [None]
        ready = set(self.expected.spool.records.ids())
        likely: list[str | None] = []
        for saved in sorted(self.expected.saved.values(), key=lambda saved: saved.order, reverse=True):
            if saved.latest and (saved.visible or saved.id in ready):
                likely.append(saved.id)
                # What was dropped may lie there a moment longer; what is torn may be in the store by now.
                if saved.visible or (saved.state != SUPERSEDED and not saved.torn):
                    return likely
        return [*likely, None]

    def note_loaded(self, data: dict[str, object] | None) -> Files:
        self.loaded = layout_id(data) if data else None
        return self.expected.saved[self.loaded].files if self.loaded else {}

    def load_into(self, folder: str, load: Callable[[], Files]) -> CheckpointError | None:
        """Afterwards the folder has what was loaded beside what was there; or, with an error, what was there."""
        before = read_tree(folder)
        try:
            after = {**before, **load()}
            error = None
            self.figures["loads"] += 1
        except CheckpointError as failure:
            after, error = before, failure
            self.figures["failed loads"] += 1
        assert read_tree(folder) == after
        assert not [name for name in os.listdir(folder) if name.startswith(".async_ckpt")]
        return error

    def admitting(self, spool: Spool) -> Callable[..., Admitted]:
        admit = spool.records.admit

        def admitted(*arguments: object) -> Admitted:
            item = admit(*arguments)  # type: ignore[arg-type]
            self.expected.admitted(item.reference, self.saving)
            self.figures["saves"] += 1
            self.figures["linked files"] += sum(entry.how == LINK for entry in item.manifest.files)
            return item

        return admitted

    def write(self, names: set[str], *, in_place: bool) -> None:
        for name in sorted(names):
            self.number += 1
            self.trainer.write(name, self.number, in_place=in_place)

    @has_task
    @rule(names=_files, in_place=st.booleans())
    def train(self, names: set[str], in_place: bool) -> None:
        self.write(names, in_place=in_place)

    @has_task
    @rule(names=_files, in_place=st.booleans(), name=_name, latest=st.booleans())
    def save(self, names: set[str], in_place: bool, name: str, latest: bool) -> None:
        self.write(names, in_place=in_place)
        self.save_once(name=name, latest=latest)

    @has_task
    @rule(names=_files, in_place=st.booleans(), name=_name, latest=st.booleans(), snapshot=_snapshot)
    def save_as_tar(self, names: set[str], in_place: bool, **options: Any) -> None:
        self.write(names, in_place=in_place)
        self.save_once(**options, storage_format="tar")

    @has_task
    @rule(which=st.sampled_from(["step", "weights"]), name=_name, latest=st.booleans(), snapshot=_snapshot)
    def save_a_file(self, which: str, **options: Any) -> None:
        self.write({which}, in_place=False)
        self.save_once(which, **options)

    @has_task
    @rule(count=st.integers(2, 4), names=_files, name=_name)
    def save_often(self, count: int, names: set[str], name: str) -> None:
        """So many times, without a pause."""
        for _ in range(count):
            self.write(names, in_place=False)
            self.save_once(name=name)

    def save_once(self, what: str = "", **options: Any) -> None:
        """All files, or the one; it may be refused, for a reason."""
        assert self.task is not None
        self.saving = {what: self.trainer.files[what]} if what else dict(self.trainer.files)
        before = set(self.expected.saved)
        try:
            self.task.save(os.path.join(self.trainer.folder, what), **options)
        except BacklogError:
            assert self.world.config.on_backlog == "raise"
            assert set(self.expected.saved) == before
            self.figures["saves refused"] += 1
            return
        except StoreError:
            assert REFUSED in self.expected.possible
        assert len(self.expected.saved) == len(before) + 1

    @has_task
    @rule(names=_files, after=st.integers(0, 12), links=st.booleans(), latest=st.booleans())
    def save_and_die(self, names: set[str], after: int, links: bool, latest: bool) -> None:
        """A subprocess of the task is killed in a save, or right after it."""
        self.write(names, in_place=False)
        before, task = set(self.task.spool.records.ids()), self.task
        self.saving = dict(self.trainer.files)
        self.world.die_as_saver(
            task, lambda: task.save(self.trainer.folder, name="c", latest=latest), after, links=links
        )
        for identity in set(task.spool.records.ids()) - before:
            item = task.spool.records.read(identity)
            self.expected.admitted(item.reference, self.saving, unguarded=True)
            self.figures["saves of the dying"] += 1
        self.figures["savers killed"] += 1

    @has_task
    @rule(killed=st.booleans())
    def task_is_over(self, killed: bool) -> None:
        if killed:
            self.world.kill_task()
            self.figures["tasks killed"] += 1
        else:
            self.end_task()
        self.task = self.world.client = None
        if self.world.agent is None:
            self.expected.lose_leases()

    def end_task(self) -> None:
        """As the decorator does it."""
        assert self.task is not None
        clean = self.is_flushed(_SHORT_S)
        self.expected.is_over = clean
        self.task.close(clean=clean)
        while self.world.turn_of_client():
            pass
        self.figures["tasks ended"] += 1

    @has_task
    @rule(seconds=st.sampled_from([0.0, 5.0, _SHORT_S]))
    def flush(self, seconds: float) -> None:
        self.is_flushed(seconds)

    def is_flushed(self, seconds: float) -> bool:
        """Flush; False if that fails, for a reason."""
        try:
            self.task.flush(seconds)
        except FlushError as error:
            self.expected.check()
            missing = [saved for saved in self.expected.attempt(self.attempt) if not saved.visible]
            late = "limit of" in str(error)  # Then what was missing may have come since.
            # Who commits and dies before it knows leaves it to the next to commit again, which a store may refuse.
            refused = REFUSED in self.expected.possible or OUTAGE in self.expected.possible
            if not late and not refused and all(saved.state == SUPERSEDED for saved in missing):
                raise AssertionError("all is there, and the flush says otherwise") from error
            return False
        self.expected.check()
        for saved in self.expected.attempt(self.attempt):
            assert saved.visible or saved.state == SUPERSEDED, f"the flush is content without {saved.id}"
        self.figures["flushes"] += 1
        return True

    @has_saved
    @rule(which=_which, seconds=st.sampled_from([0.0, 5.0]))
    def await_one(self, which: int, seconds: float) -> None:
        saved = self.pick(which)
        try:
            self.task.wait(saved.id, seconds)
        except WaitTimeout:
            return
        except StoreError:
            self.expected.look()
            assert saved.state in (FAILED, SUPERSEDED)
            return
        self.expected.check()
        assert saved.visible

    def pick(self, which: int) -> Saved:
        """One of the last few saves."""
        found = list(self.expected.saved.values())
        return found[-1 - which % len(found)]

    @has_task
    @rule()
    def list_all(self) -> None:
        self.expected.check()
        ready, fair = set(self.task.spool.records.ids()), self.world.sky.is_fair
        try:
            listed = self.task.list()
        except StoreError:
            assert not fair
            return
        shown = {layout_id(data): data["state"] for data in listed}
        saved = {i: s for i, s in self.expected.saved.items() if s.visible or i in ready}
        if fair:
            assert shown == {i: COMMITTED if s.visible else s.state for i, s in saved.items()}
        assert [layout.order(data) for data in listed] == sorted(map(layout.order, listed), reverse=True)

    @has_saved
    @rule(which=_which, by_key=st.booleans())
    def load(self, which: int, by_key: bool) -> None:
        saved = self.pick(which)
        fair = self.world.sky.is_fair
        on_disk = saved.id in self.task.spool.records.ids() and saved.state != SUPERSEDED and not saved.torn
        folder = self.base / "loaded"
        folder.mkdir(exist_ok=True)
        (folder / "mine").write_bytes(b"not to be touched")
        (folder / "step").write_bytes(b"to be replaced")
        reference = saved.reference["key"] if by_key else saved.reference

        def load() -> Files:
            self.task.load(reference, str(folder))
            return saved.files

        error = self.load_into(str(folder), load)
        assert error is None or not fair or not (saved.visible or on_disk), f"{saved.id} cannot be loaded: {error}"
        shutil.rmtree(folder)

    @has_task
    @rule(seconds=st.sampled_from([2.0, 20.0]))
    def deadline(self, seconds: float) -> None:
        """The machine will be taken away (and is not)."""
        self.task._client.request("deadline", _SHORT_S, seconds=seconds)
        self.figures["deadlines"] += 1

    # -- everybody else --------------------------------------------------------------------------------------------

    @rule(who=st.sampled_from(["agent", "uploader", "remover", "client", "all"]), turns=st.integers(1, 12))
    def goes_on(self, who: str, turns: int) -> None:
        turn = {
            "agent": self.world.turn_of_agent_alone, "uploader": self.world.turn_of_uploader,
            "remover": self.world.turn_of_remover, "client": self.world.turn_of_client, "all": self.world.turn,
        }[who]  # fmt: skip
        for _ in range(turns):
            turn()

    @rule(seconds=st.sampled_from([1.0, 5.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.settle(seconds, lambda: False)

    @rule(after=st.integers(0, 40), torn=st.booleans())
    def agent_dies(self, after: int, torn: bool) -> None:
        self.figures["agents killed"] += self.world.agent is not None
        self.world.die_as_agent(Fuse(after, torn=torn))
        self.expected.lose_leases()
        self.world.clock.advance(_BETWEEN_CRASHES_S)

    @rule(after=st.integers(0, 20))
    def uploader_dies(self, after: int) -> None:
        if self.world.uploader is not None:
            self.figures["uploaders killed"] += 1
            self.deaths += 1
            if self.deaths >= 5:
                self.expected.possible.add(DEATHS)
        self.world.die_as_uploader(Fuse(after))

    @rule(now=st.sampled_from([FAIR, FAIR, DOWN, REFUSING]), fates=_fates)
    def weather_changes(self, now: str, fates: list[str]) -> None:
        """``fates``: what happens to the next calls in fair weather."""
        self.world.sky.now = now
        self.world.sky.next.extend(fates)
        self.expected.possible |= {DOWN: {OUTAGE}, REFUSING: {REFUSED}}.get(now, set())
        self.expected.possible |= {OUTAGE} if fates else set()

    # -- the end ---------------------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """In fair weather a last attempt brings in all there is; nothing is left of the spool then."""
        self.world.sky.now = FAIR
        self.world.sky.next.clear()
        if self.task is None:
            self.next_attempt()
        self.world.kill_agent()  # Those who come next sweep up.
        self.expected.lose_leases()
        assert self.world.settle(_LONG_S, lambda: not self.task.spool.records.ids() or self.is_settled())
        self.expected.check()
        self.expected.assert_no_orphans()
        self.expected.assert_latest_is_newest()
        for saved in self.expected.saved.values():
            assert saved.visible or saved.state in (SUPERSEDED, FAILED), f"{saved.id} is {saved.state} for ever"
        self.figures["committed"] += sum(saved.visible for saved in self.expected.saved.values())
        self.figures["superseded"] += sum(saved.state == SUPERSEDED for saved in self.expected.saved.values())
        self.figures["failed"] += sum(saved.state == FAILED for saved in self.expected.saved.values())
        self.figures["lives"] += 1
        self.task_is_over(killed=False)
        assert self.world.settle(_LONG_S, lambda: self.world.agent is None), "the agent does not end"
        self.expected.check()

    def is_settled(self) -> bool:
        """Whether the agent has nothing left to do."""
        status = self.task.status()
        ready = set(self.task.spool.records.ids())
        return not status["pending"] and all(self.expected.saved[i].state == FAILED for i in ready)


def layout_id(reference: object) -> str:
    return f"{reference['attempt']}.{reference['name']}.{reference['version_id']}"  # type: ignore[index]
