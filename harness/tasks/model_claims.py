"""What must be true of a world's disk and store at any moment, given what was saved: the model of ``model.py``."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from async_ckpt import layout
from async_ckpt.agent.agent import Agent
from async_ckpt.capture.content import pack_path
from async_ckpt.config import Config
from async_ckpt.manifest import LINK, Manifest
from async_ckpt.spool.journal import ADMITTED, COMMITTED, FAILED, FINAL, RELEASED, SUPERSEDED, UPLOADED, Reader
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.spool import Spool
from async_ckpt.stores import catalog
from async_ckpt.stores.local import LocalStore
from harness.stores.content import crcs_of
from harness.tasks.single_thread import World
from harness.tasks.task import TASK

Files = dict[str, bytes]

#: Why a checkpoint may fail, and by what in the reason that is known.
TORN, REFUSED, OUTAGE, DEATHS = "torn", "refused", "outage", "deaths"
_REASONS = {
    "was written to": TORN, "captured file": TORN,
    "The store refuses": REFUSED, "It was tried for": OUTAGE, "died 5 times": DEATHS,
}  # fmt: skip


@dataclass
class Saved:
    """One admitted checkpoint, and what is known of it.

    Parameters
    ----------
    files : dict
        Content by path.
    unguarded : bool
        Nobody holds its leases any more, or anybody ever did.
    torn : bool
        It was written to since.
    state, why : str
        What the journal said last, as far as it did.
    visible : bool
        It is in the store.
    given_up : bool
        It had failed when a later attempt ended well: nobody wants it any more.
    """

    reference: dict[str, Any]
    files: Files
    unguarded: bool = False
    torn: bool = False
    state: str = ADMITTED
    why: str = ""
    visible: bool = False
    given_up: bool = False

    @property
    def id(self) -> str:
        return f"{self.reference['attempt']}.{self.reference['name']}.{self.reference['version_id']}"

    @property
    def order(self) -> tuple[int, int]:
        return layout.order(self.reference)

    @property
    def latest(self) -> bool:
        return bool(self.reference["latest"])

    @property
    def pending(self) -> bool:
        """Whether something may still be done for it."""
        return not self.visible and self.state not in RELEASED


class Expected:
    """All that was saved in a world.

    ``possible`` holds the reasons for which checkpoints may fail by now.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = Path(world.store.root)
        self._directory = os.path.join(world.root, layout.short_hash([TASK.pathspec, world.store.root], 16))
        self._journal = Reader(os.path.join(self._directory, "journal"))
        self._ordered: set[str] = set()
        self._latest: dict[str, Any] = {}
        self.saved: dict[str, Saved] = {}
        self.possible: set[str] = set()
        self.is_over = False

    @property
    def spool(self) -> Spool:
        return Spool(self._directory, TASK, self._world.store)

    def admitted(self, reference: Mapping[str, Any], files: Files, *, unguarded: bool = False) -> Saved:
        saved = Saved(dict(reference), dict(files), unguarded)
        assert saved.id not in self.saved, "a version was given out twice"
        self.saved[saved.id] = saved
        return saved

    def begin_attempt(self) -> None:
        """A new one takes up what the earlier ones left."""
        self.check()
        self.is_over = False

    def attempt(self, number: int) -> list[Saved]:
        """What an attempt saved."""
        return [saved for saved in self.saved.values() if saved.order[0] == number]

    # -- leases ----------------------------------------------------------------------------------------------------

    def lose_leases(self) -> None:
        """The agent is dead: what the task does not hold either, nobody guards."""
        client = self._world.client
        for saved in self.saved.values():
            if saved.pending and not (client is not None and client.holds(saved.id)):
                saved.unguarded = True

    def sharing(self, inode: int) -> Iterator[Saved]:
        """What is still linked to a file of the trainer's."""
        for saved in self.saved.values():
            item = self.spool.records.read(saved.id) if saved.pending else None
            for entry in item.manifest.files if item is not None else ():
                if entry.how == LINK and item is not None and _inode(item.file(entry.path)) == inode:
                    yield saved

    # -- at every moment -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """What the journal says is true; what has ended stays so."""
        for identity, item in self._journal.look().items():
            saved = self.saved.get(identity)
            assert saved is not None, f"the journal invents {identity}"
            if item.state == saved.state:
                continue
            assert saved.state not in RELEASED, f"{identity} was {saved.state} and is {item.state}"
            saved.state, saved.why = item.state, item.why
            if item.state == COMMITTED:
                assert self._is_visible(saved), f"{identity} counts as committed and is not in the store"
            elif item.state == UPLOADED:
                self._assert_whole(saved)
            elif item.state == FAILED:
                self._assert_may_fail(saved)
            elif item.state == SUPERSEDED:
                self._assert_may_be_dropped(saved)

    def _assert_may_fail(self, saved: Saved) -> None:
        reason = next((reason for text, reason in _REASONS.items() if text in saved.why), None)
        allowed = saved.torn if reason == TORN else reason in self.possible
        assert allowed, f"{saved.id} has failed: {saved.why}"

    def _assert_may_be_dropped(self, saved: Saved) -> None:
        assert self._world.config.on_backlog == "supersede", f"{saved.id} was dropped: {saved.why}"
        newer = [other for other in self.saved.values() if other.order > saved.order]
        assert any(other.reference["name"] == saved.reference["name"] for other in newer), "the newest was dropped"
        assert saved.why, f"{saved.id} was dropped for no reason"

    def on_commit(self, agent: Agent, ids: Sequence[str]) -> None:
        """The agent orders a commit: it is the turn of these."""
        jobs = agent.queue.jobs
        in_a_hurry = agent.queue._preferred is not None
        earlier: list[str] = []
        for identity in ids:
            for other in self.saved.values():
                job = jobs.get(other.id)
                # Nobody waits for one that was passed by, or with which in hand agents die again and again.
                waits = job is not None and other.order < self.saved[identity].order
                if waits and not (job.passed or job.is_suspect or in_a_hurry or other.id in earlier):
                    assert job.state in FINAL, f"{identity} is committed before {other.id}"
            earlier.append(identity)
        self._ordered.update(ids)

    def check(self) -> None:
        """What a reader of the store sees, and whether everything saved is somewhere."""
        self.look()
        folder = self._store / TASK.task_folder
        visible = {path.stem for path in folder.glob("*.metadata")}
        assert visible <= self.saved.keys(), "there is something in the store that was never admitted"
        new = [self.saved[identity] for identity in visible if not self.saved[identity].visible]
        for saved in new:
            assert saved.id in self._ordered, f"{saved.id} is in the store, and nobody ordered that"
            assert saved.state != SUPERSEDED, f"{saved.id} was dropped and is in the store"
            saved.visible = True
            self._assert_whole(saved)
            self._assert_described(saved)
        assert all(saved.id in visible for saved in self.saved.values() if saved.visible), "a commit is gone"
        moved = self._check_latest(TASK.task_folder)
        moved |= self._check_latest(TASK.scope_folder)
        if new or moved:
            self._assert_found_from_elsewhere()
        ready = set(self.spool.records.ids())
        for saved in self.saved.values():
            kept = saved.visible or saved.id in ready or saved.state == SUPERSEDED
            saved.given_up |= self.is_over and saved.state == FAILED
            lost = saved.state == FAILED and bool(saved.why) and (saved.torn or saved.given_up)
            assert kept or lost, f"{saved.id} is gone: {saved.state} {saved.why}"

    def _check_latest(self, folder: str) -> bool:
        """It names a commit, and never an older one than before. True if it has moved."""
        path = self._store / folder / layout.LATEST
        if not path.exists():
            assert folder not in self._latest, f"{path} is gone"
            return False
        data = json.loads(path.read_bytes())
        before, now = self._latest.get(folder), layout.order(data)
        if before == now:
            return False
        saved = self.saved[_id(data)]
        assert saved.visible, "the latest checkpoint is not in the store"
        assert saved.latest, "the latest is one that was not to be"
        assert before is None or now > before, f"the latest moves back from {before} to {now}"
        self._latest[folder] = now
        return True

    def newest(self) -> Saved | None:
        """The newest in the store that a retry may load by itself."""
        visible = [saved for saved in self.saved.values() if saved.visible and saved.latest]
        return max(visible, key=lambda saved: saved.order, default=None)

    def _assert_found_from_elsewhere(self) -> None:
        """A retry on another machine finds the newest."""
        task = replace(TASK, attempt=max((saved.order[0] for saved in self.saved.values()), default=0) + 1)
        found = anyio.run(catalog.newest_of_task, LocalStore(self._world.store.root), task, Config())
        newest = self.newest()
        assert (_id(found) if found else None) == (newest.id if newest else None), "another machine finds an older one"

    def _is_visible(self, saved: Saved) -> bool:
        return (self._store / TASK.task_folder / f"{saved.id}.metadata").exists()

    def _assert_whole(self, saved: Saved) -> None:
        """Content and digests."""
        stored = self._store / saved.reference["key"]
        where = self._store / saved.reference["manifest"]
        manifest = Manifest.from_json(json.loads(where.read_bytes()), where=str(where))
        if saved.reference["storage_format"] == "tar":
            assert _untar(stored) == saved.files, f"{saved.id} is not what was saved"
            tar = manifest.tar or {}
            assert (tar["size"], tar["crc32"]) == (stored.stat().st_size, crcs_of(stored.read_bytes()))
        else:
            assert read_tree(str(stored)) == saved.files, f"{saved.id} is not what was saved"
            digests = {entry.path: entry.crc32 for entry in manifest.files}
            assert digests == {path: crcs_of(data) for path, data in saved.files.items()}

    def _assert_described(self, saved: Saved) -> None:
        """Both copies of its metadata."""
        parts = layout.parse_key(saved.reference["key"])
        for key in (parts.metadata_key, parts.task_metadata_key(TASK.pathspec)):
            assert json.loads((self._store / key).read_bytes()) == saved.reference

    # -- at rest ---------------------------------------------------------------------------------------------------

    def assert_no_orphans(self) -> None:
        """What lies in the spool belongs to a record, or was left by a saver that died under this agent's eyes."""
        items = self.spool.records.pending()
        owned = {item.data for item in items} | {pack_path(item.data) for item in items}
        found = [*_paths(self.spool.path("data")), *_paths(self.spool.path("staging"))]
        pids = {str(pid) for pid in self._world.dead_savers}
        orphans = [path for path in found if path not in owned and os.path.basename(path).split("-")[0] not in pids]
        assert not orphans, f"nobody owns {orphans}"

    def assert_latest_is_newest(self) -> None:
        newest = self.newest()
        assert self._latest.get(TASK.task_folder) == (newest.order if newest else None)


def read_tree(folder: str) -> Files:
    """All files below a folder, by relative path; nothing where there is none."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = Path(path).read_bytes()
    return found


def is_whole(item: Admitted) -> bool:
    """Whether a snapshot's data is still there."""
    return os.path.isdir(item.data)


def _untar(path: Path) -> Files:
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]


def _id(reference: Mapping[str, Any]) -> str:
    return f"{reference['attempt']}.{reference['name']}.{reference['version_id']}"


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return -1


def _paths(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
