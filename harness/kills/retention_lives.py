"""Lives of tasks: checkpoints are saved, annotated, and removed by rules and by hand, and processes die anywhere.

The store's code is real: commits (``upload/checkpoint.py``), annotations, rules, removals and garbage collection. A
small model beside it knows what must be there. It decides by the words of ``docs/retention.md``, and not by the code of
``retention/rules.py``.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError
from async_ckpt.manifest import FileEntry, Manifest, dump
from async_ckpt.retention import garbage
from async_ckpt.retention.apply import Retention
from async_ckpt.retention.delete import delete
from async_ckpt.retention.rules import Best, Rules
from async_ckpt.stores import catalog
from async_ckpt.stores.base import Progress, Store, Wrapper, no_progress
from async_ckpt.upload.annotate import annotate
from async_ckpt.upload.checkpoint import CheckpointWriter

T = TypeVar("T")
CONFIG = Config(local_fsync=False, files_in_flight=4)
SCOPE, STEP = "a" * 12, "b" * 12
#: What is older than this is garbage, in seconds.
GRACE_S = 1000.0
#: How many checkpoints a task keeps at most before it has its rules applied: lives are to be many, and not long.
_MOST = 30
NAMES = ("model", "other")


class Killed(BaseException):
    """The process is dead. Nothing that it does after that reaches the store."""


class Mortal(Wrapper):
    """A store whose user dies at its ``left``-th change, and lets others go on before each call."""

    def __init__(self, store: Store, left: float, random_: random.Random) -> None:
        super().__init__(store)
        self.left, self._random, self.dead = left, random_, False

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        for _ in range(self._random.randrange(3)):
            await anyio.sleep(0)
        if operation in ("put_bytes", "put_if", "delete"):
            self.dead = self.dead or self.left <= 0
            self.left -= 1
        if self.dead:
            raise Killed
        return await call(progress)


@dataclass
class Saved:
    """One checkpoint, as the model knows it."""

    reference: dict[str, Any]
    metadata: dict[str, Any]
    #: Its commit was interrupted, or its removal: it may be there or not.
    unsure: bool = False


@dataclass
class TaskLife:
    """One run's task: what the model knows of it."""

    number: int
    rules: Rules
    attempt: int = 0
    version: int = 0
    saved: dict[str, Saved] = field(default_factory=dict)
    #: Keys: what the running attempt began with, and what artifacts refer to.
    resumed: str = ""
    referenced: set[str] = field(default_factory=set)

    @property
    def task(self) -> layout.TaskInfo:
        return layout.TaskInfo("Flow", str(self.number), "train", "1", self.attempt, SCOPE, STEP)


class Lives:
    """Some tasks of one step over one store.

    Parameters
    ----------
    store : Store
        It says when objects were written.
    now : callable
        Seconds since 1970 by the store's clock.
    """

    def __init__(self, store: Store, seed: int, now: Callable[[], float], tasks: int = 2) -> None:
        self._store, self._random, self._now = store, random.Random(seed), now
        self.tasks = [TaskLife(number, self._any_rules()) for number in range(tasks)]
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def _any_rules(self) -> Rules:
        draw = self._random
        best = Best("loss", draw.choice(("min", "max")), draw.randint(1, 3)) if draw.random() < 0.5 else None
        rules = Rules(draw.choice((0, 1, 2, 4)), best, draw.choice((0, 0, 3, 5)))
        return rules if rules else Rules(last=1)

    @property
    def operations(self) -> int:
        """How many there were."""
        return sum(self.done.values()) - self.done["killed"]

    # -- what happens --------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Let something happen: one operation, or one of each of two tasks at once. Then look."""
        if self._random.random() < 0.3:
            both = self._random.sample(self.tasks, 2)
            async with anyio.create_task_group() as group:
                for life in both:
                    group.start_soon(self._operate, life)
        else:
            await self._operate(self._random.choice(self.tasks))
        await self._look()

    async def _operate(self, life: TaskLife) -> None:
        operations = {
            self.save: 40, self.annotate: 20, self.retain: 15, self.remove: 5, self.attempt: 5, self.refer: 5,
            self.collect: 3, self.load: 7,
        }  # fmt: skip
        if len(life.saved) > _MOST:
            operations = {self.retain: 1, self.remove: 1}
        operation = self._random.choices(list(operations), list(operations.values()))[0]
        name = getattr(operation, "__name__", "")
        dies = self._random.random() < 0.2
        mortal = Mortal(self._store, self._random.randrange(12) if dies else math.inf, self._random)
        try:
            await operation(life, mortal)
        except BaseException as error:
            if not mortal.dead:
                raise
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise
            self.done["killed"] += 1
        self.done[name] += 1

    async def save(self, life: TaskLife, store: Mortal) -> None:
        """As an uploader: files, manifest, commit."""
        life.version += 1
        name, is_tar = self._random.choice(NAMES), self._random.random() < 0.2
        metadata = self._any_metadata()
        reference = layout.reference(
            life.task, name=name, version=life.version, url=store.root, size=20, metadata=metadata,
            storage_format="tar" if is_tar else "files", latest=self._random.random() < 0.8,
        )  # fmt: skip
        parts = layout.parse_key(reference["key"])
        saved = life.saved[parts.key] = Saved(reference, metadata, unsure=True)
        for key in [parts.key] if is_tar else [f"{parts.key}/{number}" for number in range(2)]:
            await store.put_bytes(key, b"x" * 10)
        manifest = Manifest([FileEntry(str(number), 10, 0o644) for number in range(2)])
        await store.put_bytes(parts.manifest_key, dump(manifest.to_json()))
        await CheckpointWriter(store, CONFIG).commit([reference])
        saved.unsure = False

    def _any_metadata(self) -> dict[str, Any]:
        draw = self._random
        value = draw.choice((None, draw.random(), draw.randrange(5), "a text", True, math.nan, 10**400, [1.0]))
        return {"loss": value} if draw.random() < 0.6 else {}

    async def annotate(self, life: TaskLife, store: Mortal) -> None:
        sure = [saved for saved in life.saved.values() if not saved.unsure]
        if not sure:
            return
        saved = self._random.choice(sure)
        more = {"loss": self._random.choice((self._random.random(), "text", math.inf, self._random.randrange(4)))}
        before, saved.unsure = saved.metadata, True
        saved.metadata = {**before, **more}
        try:
            await annotate(store, saved.reference["key"], life.task.pathspec, more, CONFIG.metadata_bytes)
            saved.unsure = False
        finally:
            if store.dead:  # It may be written or not; a later one says.
                saved.unsure, saved.metadata = False, await self._metadata_of(life, saved) or before

    async def _metadata_of(self, life: TaskLife, saved: Saved) -> dict[str, Any] | None:
        key = layout.parse_key(saved.reference["key"]).task_metadata_key(life.task.pathspec)
        found = await catalog.read_reference(self._store, *key.rsplit("/", 1))
        return dict(found["metadata"]) if found is not None else None

    async def retain(self, life: TaskLife, store: Mortal) -> None:
        """As an agent and its uploader do after a commit, until there is nothing more to remove."""
        must, may = await self._judged(life)
        copied_from = {key for key in life.saved if self._random.random() < 0.1}
        most = self._random.choice((1, 3, 100))
        needed = life.referenced | {life.resumed} | copied_from

        async def apply() -> None:
            retention = Retention(store, life.task, life.rules, CONFIG)
            while True:
                keys = [key for key in await retention.candidates(most) if key not in needed]
                if keys:
                    await retention.remove(keys)
                elif not retention.has_more:
                    break

        try:
            async with anyio.create_task_group() as group:  # Sometimes the same attempt runs twice.
                for _ in range(self._random.choice((1, 1, 2))):
                    group.start_soon(apply)
        finally:
            there = await self._listed(life)
            gone = {key for key, saved in life.saved.items() if not saved.unsure and key not in there}
            if gone & must:
                self.wrong.append(f"removed, though it must stay: {sorted(gone & must)} by {life.rules}")
            for key in gone:
                del life.saved[key]
        if left := (may - copied_from) & there:
            self.wrong.append(f"not removed: {sorted(left)} by {life.rules}")

    async def remove(self, life: TaskLife, store: Mortal) -> None:
        """By hand: anything, also what the attempt began with."""
        sure = [saved for saved in life.saved.values() if not saved.unsure]
        if not sure:
            return
        saved = self._random.choice(sure)
        saved.unsure = True
        await delete(store, saved.reference, CONFIG)
        del life.saved[saved.reference["key"]]

    async def attempt(self, life: TaskLife, store: Mortal) -> None:
        """A new attempt begins with the newest that a retry loads."""
        life.attempt += 1
        found = await catalog.newest_of_task(store, life.task, CONFIG)
        life.resumed = found["key"] if found is not None else ""
        if found is not None and (why := await self._lacks(found)):
            self.wrong.append(f"what an attempt begins with cannot be loaded: {why}")

    async def refer(self, life: TaskLife, store: Mortal) -> None:
        """An artifact refers to something, or to nothing any more."""
        if life.referenced and self._random.random() < 0.6:
            life.referenced.pop()
        elif life.saved:
            life.referenced.add(self._random.choice(list(life.saved)))

    async def collect(self, life: TaskLife, store: Mortal) -> None:
        """The garbage of all tasks, of which nothing is on its way."""
        if any(saved.unsure for each in self.tasks for saved in each.saved.values()) and self._random.random() < 0.5:
            return
        found = await garbage.find(store, "Flow", older_than_s=GRACE_S, now=self._now() + 2 * GRACE_S)
        on_its_way = {key for each in self.tasks if each is not life for key, s in each.saved.items() if s.unsure}
        await garbage.remove(store, [one for one in found if one.where not in on_its_way], CONFIG)

    async def load(self, life: TaskLife, store: Mortal) -> None:
        """The newest of the step, as another run does."""
        found = await catalog.newest_of_step(store, life.task.scope_folder, CONFIG)
        if found is not None and (why := await self._lacks(found)):
            self.wrong.append(f"the newest of the step cannot be loaded: {why}")

    # -- what must be so -----------------------------------------------------------------------------------------------

    async def _judged(self, life: TaskLife) -> tuple[set[str], set[str]]:
        """Keys that must stay, and those that must go, of what is certain."""
        there = await self._listed(life)
        sure = {key: saved for key, saved in life.saved.items() if key in there}
        for key in list(life.saved):
            if key not in there and not life.saved[key].unsure:
                self.wrong.append(f"it has vanished: {key}")
        must = {life.resumed} | life.referenced | await self._named()
        loadable = [saved for saved in sure.values() if layout.is_latest(saved.reference)]
        if loadable:
            must.add(max(loadable, key=lambda saved: layout.order(saved.reference)).reference["key"])
        for name in NAMES:
            must |= _kept_by(life.rules, [saved for saved in sure.values() if saved.reference["name"] == name])
        certain = {key for key, saved in sure.items() if not saved.unsure}
        return must & certain, certain - must

    async def _named(self) -> set[str]:
        """What any ``latest`` names."""
        found = set()
        for folder in {folder for life in self.tasks for folder in (life.task.task_folder, life.task.scope_folder)}:
            data = await catalog.read_reference(self._store, folder, layout.LATEST)
            found |= {data["key"]} if data is not None else set()
        return found

    async def _listed(self, life: TaskLife) -> set[str]:
        return {one["key"] for one in await catalog.list_references(self._store, life.task.task_folder, CONFIG)}

    async def _look(self) -> None:
        """Whatever is listed anywhere can be loaded; what is certain is listed."""
        for folder in {folder for life in self.tasks for folder in (life.task.task_folder, life.task.scope_folder)}:
            listed = await catalog.list_references(self._store, folder, CONFIG)
            latest = await catalog.read_reference(self._store, folder, layout.LATEST)
            for one in [*listed, *([latest] if latest is not None else [])]:
                if why := await self._lacks(one):
                    self.wrong.append(f"listed in {folder}, and cannot be loaded: {why}")
        for life in self.tasks:
            there = await self._listed(life)
            for key in list(life.saved):
                if life.saved[key].unsure:
                    life.saved[key].unsure = False
                    if key not in there:  # Its commit never came, or its removal did.
                        del life.saved[key]
                elif key not in there:
                    self.wrong.append(f"it has vanished: {key}")
                    del life.saved[key]

    async def _lacks(self, reference: dict[str, Any]) -> str:
        parts = layout.parse_key(reference["key"])
        try:
            manifest = Manifest.from_json(await catalog.read_json(self._store, parts.manifest_key), where="")
            for entry in manifest.files:
                is_tar = reference["storage_format"] == "tar"
                await self._store.size(parts.key if is_tar else f"{parts.key}/{entry.path}")
        except CheckpointError as error:
            return f"{reference['key']}: {error}"
        return ""


async def live(store: Store, seed: int, operations: int) -> Lives:
    """So many operations, or until something is wrong."""
    lives = Lives(store, seed, time.time)
    while lives.operations < operations and not lives.wrong:
        await lives.step()
    await store.aclose()
    return lives


def _kept_by(rules: Rules, saved: list[Saved]) -> set[str]:
    """What the rules keep of one name, in the plainest words."""
    ordered = sorted(saved, key=lambda one: layout.order(one.reference))
    kept = {one.reference["key"] for one in ordered[len(ordered) - min(rules.last, len(ordered)) :]}
    if rules.every:
        kept |= {one.reference["key"] for one in ordered if layout.order(one.reference)[1] % rules.every == 0}
    if rules.best is not None:
        numbers = [(_number(one.metadata.get("loss")), one) for one in ordered]
        known = [(value, one) for value, one in numbers if value is not None]
        if not known:
            return {one.reference["key"] for one in ordered}
        sign = 1 if rules.best.mode == "min" else -1
        ranked = sorted(enumerate(known), key=lambda each: (sign * each[1][0], -each[0]))
        kept |= {one.reference["key"] for _, (_, one) in ranked[: rules.best.count]}
        newest = max(layout.order(one.reference) for _, one in known)
        kept |= {one.reference["key"] for one in ordered if layout.order(one.reference) > newest}
    return kept


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
