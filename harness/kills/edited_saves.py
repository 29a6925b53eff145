"""A task saves files that are edited at random, while objects of earlier checkpoints vanish or are replaced, and
agents, uploaders and machines die: what is loaded has to be what was saved, always.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
from botocore.config import Config

from async_ckpt.errors import CheckpointError
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.edits import EditedFiles, sums_of
from harness.s3.servers import BUCKET, S3Server
from harness.tasks.task import Task, agent_pid, kill

_WAIT_S = 300
#: So many saves may be on their way.
_AHEAD = 3
#: So many checkpoints are kept, the last ones; the others are deleted, as users do.
_KEPT = 2

#: All are compared as they lie in the store; one of so many is loaded as well, which takes longer.
_LOADED = 4

#: What happens between two saves, by how often.
TROUBLES = {
    "nothing": 10, "an object is deleted": 3, "an object is replaced": 3, "the agent is killed": 1,
    "the uploader is killed": 1, "another machine": 1,
}  # fmt: skip


class Objects(Protocol):
    """Somebody else's access to a store."""

    def below(self, key: str) -> list[str]:
        """Keys of all objects in a folder."""

    def sums(self, key: str) -> dict[str, str]:
        """SHA-256 in hex digits of all objects in a folder, by the rest of their keys, as any client reads them."""

    def delete(self, key: str) -> None: ...

    def replace(self, key: str, chance: random.Random) -> None:
        """Give an object other content of the same size."""


class LocalObjects:
    """Of a local store."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def below(self, key: str) -> list[str]:
        return [str(path.relative_to(self._root)) for path in sorted((self._root / key).rglob("*")) if path.is_file()]

    def sums(self, key: str) -> dict[str, str]:
        return sums_of(self._root / key)

    def delete(self, key: str) -> None:
        (self._root / key).unlink()

    def replace(self, key: str, chance: random.Random) -> None:
        path = self._root / key
        new = path.with_name(".replaced")
        new.write_bytes(chance.randbytes(path.stat().st_size))
        os.replace(new, path)


class S3Objects:
    """Of a server; ``prefix``: where in its bucket the store lies."""

    def __init__(self, client_params: Mapping[str, str], prefix: str) -> None:
        # moto gives a copy of what came in parts the checksum of those parts as if it were that of the whole.
        settings = Config(response_checksum_validation="when_required")
        self._client = boto3.client("s3", **client_params, config=settings)
        self._prefix = prefix

    def below(self, key: str) -> list[str]:
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self._prefix}/{key}/")
        return [item["Key"].removeprefix(f"{self._prefix}/") for item in found.get("Contents", ())]

    def sums(self, key: str) -> dict[str, str]:
        found = {}
        for name in self.below(key):
            digest = hashlib.sha256()
            answer = self._client.get_object(Bucket=BUCKET, Key=f"{self._prefix}/{name}")
            for data in answer["Body"].iter_chunks(1 << 20):
                digest.update(data)
            found[name.removeprefix(f"{key}/")] = digest.hexdigest()
        return found

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=f"{self._prefix}/{key}")

    def replace(self, key: str, chance: random.Random) -> None:
        name = f"{self._prefix}/{key}"
        size = self._client.head_object(Bucket=BUCKET, Key=name)["ContentLength"]
        self._client.put_object(Bucket=BUCKET, Key=name, Body=chance.randbytes(size))


def on_server(server: S3Server, prefix: str) -> tuple[StoreSpec, S3Objects]:
    """A store below a prefix of a server's bucket."""
    params = server.client_params
    return StoreSpec("metaflow-s3", f"s3://{BUCKET}/{prefix}", {"client_params": params}), S3Objects(params, prefix)


@dataclass
class Found:
    """What came of it. ``reported``: saves that the task was told to have failed, with a reason."""

    edits: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    saves: int = 0
    compared: int = 0
    bytes: int = 0
    copied: int = 0
    reported: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Saved:
    reference: Reference
    expected: dict[str, str]


class EditedSaves:
    """One life of a task, on as many machines as it takes.

    Parameters
    ----------
    base : Path
        Its own directory; machines have theirs in it.
    place : tuple or None
        The store and how to get at its objects; None: a local store in ``base``.
    seed : int
        Draws everything.
    most : int
        Bytes of all files together.
    troubles : mapping
        How often what happens.
    """

    def __init__(
        self, base: Path, patch: pytest.MonkeyPatch, place: tuple[StoreSpec, Objects] | None, seed: int, *, most: int,
        troubles: Mapping[str, int] = TROUBLES, settings: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        self._base, self._patch, self._chance, self._most = base, patch, random.Random(seed), most
        store = base / "store"
        self._spec, self._objects = place or (StoreSpec("local", str(store)), LocalObjects(store))
        self._troubles, self._settings = troubles, settings or {}
        self._machines = 0
        self._pending: list[_Saved] = []
        self._committed: list[_Saved] = []
        self.found = Found()
        self._task, self._checkpointer, self._files = self._machine()

    def run(self, edits: int) -> Found:
        """So many edits, a save after a few of them each, and all that is to be checked."""
        try:
            while self.found.edits.total() < edits and not self.found.wrong:
                for _ in range(self._chance.randint(1, 3)):
                    self.found.edits[self._files.edit()] += 1
                self._save()
                trouble = self._chance.choices(list(self._troubles), list(self._troubles.values()))[0]
                self.found.troubles[trouble] += 1
                _HAPPENS[trouble](self)
                if len(self._pending) >= _AHEAD or self._chance.random() < 0.5:
                    self._check()
            self._check()
        finally:
            self._end_machine()
        return self.found

    def _machine(self) -> tuple[Task, Checkpointer, EditedFiles]:
        """A machine that is new, and goes on with what the store has."""
        number = self._machines
        self._machines += 1
        task = Task(self._base / f"machine-{number}", self._patch)
        task.store = self._spec
        task.set(**self._settings)
        checkpointer = task.start(attempt=number)
        if number:
            before = self._files.expected
            checkpointer.load_newest("fresh", str(task.work / "files"))
            self._compare(sums_of(task.work / "files"), before, f"what machine {number} begins with")
        return task, checkpointer, EditedFiles(task.work / "files", self._chance, most=self._most)

    def _end_machine(self) -> None:
        left = self._task.close()
        if left:
            self.found.wrong.append(f"processes were left behind: {left}")

    def _save(self) -> None:
        self.found.saves += 1
        self.found.bytes += sum(path.stat().st_size for path in self._files.root.iterdir())
        saved = self._checkpointer.save(self._files.root)
        self._pending.append(_Saved(saved, dict(self._files.expected)))

    def _check(self) -> None:
        """Wait for what is on its way, load it as somebody else does, and compare."""
        for saved in self._pending:
            try:
                saved.reference.wait(_WAIT_S)
            except CheckpointError as error:
                self.found.reported.append(str(error))
                continue
            what = f"save {saved.reference['version_id']}"
            self._compare(self._objects.sums(saved.reference["key"]), saved.expected, f"{what} in the store")
            if not self.found.compared % _LOADED:
                self._load(saved, what)
            self._committed.append(saved)
        self._pending = []
        while len(self._committed) > _KEPT:
            for key in self._objects.below(self._committed.pop(0).reference["key"]):
                self._objects.delete(key)

    def _load(self, saved: _Saved, what: str) -> None:
        into = self._base / "loaded"
        try:
            self._task.read(saved.reference, into)
        except CheckpointError as error:
            self.found.wrong.append(f"{what} cannot be loaded: {error}")
        else:
            self._compare(sums_of(into), saved.expected, what)
        shutil.rmtree(into, ignore_errors=True)

    def _compare(self, found: dict[str, str], expected: dict[str, str], what: str) -> None:
        self.found.compared += 1
        if found != expected:
            differ = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
            self.found.wrong.append(f"{what}: other content of {differ}, after {dict(self.found.edits)}")

    # -- troubles ----------------------------------------------------------------------------------------------------

    def _nothing(self) -> None:
        """For ``TROUBLES``."""

    def _an_object(self) -> str | None:
        """Of the newest checkpoint that was compared: the next ones copy from it."""
        keys = self._objects.below(self._committed[-1].reference["key"]) if self._committed else []
        return self._chance.choice(keys) if keys else None

    def _delete(self) -> None:
        if key := self._an_object():
            self._objects.delete(key)

    def _replace(self) -> None:
        if key := self._an_object():
            self._objects.replace(key, self._chance)

    def _kill_agent(self) -> None:
        kill(agent_pid(self._checkpointer))

    def _kill_uploader(self) -> None:
        if pid := self._checkpointer.status()["uploader_pid"]:
            kill(int(pid))

    def _move(self) -> None:
        """What is saved is stored, this machine goes, and another one loads it and goes on."""
        self._check()
        if self._committed and self._committed[-1].expected == self._files.expected:
            self.found.copied += self._copied()
            self._end_machine()
            self._task, self._checkpointer, self._files = self._machine()

    def _copied(self) -> int:
        return int(self._checkpointer.status()["bytes_copied"])


_HAPPENS: dict[str, Callable[[EditedSaves], Any]] = {
    "nothing": EditedSaves._nothing, "an object is deleted": EditedSaves._delete,
    "an object is replaced": EditedSaves._replace, "the agent is killed": EditedSaves._kill_agent,
    "the uploader is killed": EditedSaves._kill_uploader, "another machine": EditedSaves._move,
}  # fmt: skip
