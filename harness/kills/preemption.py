"""Machines that are taken away while checkpoints wait, some of which cannot be stored, each for a reason of its own.

What must be durable is said by a model of its own, which knows bytes, seconds, and nothing of how it is decided.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from async_ckpt.config import NOTICE_LOOK_S
from async_ckpt.errors import CheckpointError
from async_ckpt.spool.journal import ADMITTED
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from harness.s3.fault_server import FaultServer, Turn
from harness.s3.memory_s3 import MemoryS3, error
from harness.s3.servers import BUCKET, S3Server
from harness.tasks.task import TASK, Task, agent_pid, content, kill

#: What may be wrong with a checkpoint, and how much time that costs those after it at most, in seconds, besides the
#: seconds in which its bytes are sent. Half a second without anything new is what is waited for at least.
REFUSED, TORN, GONE, FAILS, HANGS, SLOW = "refused", "torn", "gone", "fails", "hangs", "slow"
NO_COMMIT, COMMIT_HANGS = "commit refused", "commit hangs"
COSTS_S = {REFUSED: 0.2, TORN: 0.2, GONE: 0.2, FAILS: 1.0, HANGS: 1.5, SLOW: 1.5, NO_COMMIT: 0.3, COMMIT_HANGS: 1.5}
#: These are sent (or half of them) before it shows.
SENT = (FAILS, HANGS, NO_COMMIT, COMMIT_HANGS)

#: What a commit takes at most, of the time that is planned with, and of that above which nothing is expected.
COMMIT_S = 0.15
MUST_SHARE, MAY_SHARE = 0.7, 0.95
#: So small ones may come before newer ones: there is bandwidth left over.
_SMALL_BYTES, _SMALL_SHARE = 1 << 20, 1 / 8
_SLOW_PIECE, _SLOW_S = 2048, 0.1


@dataclass(frozen=True)
class Preemption:
    """Checkpoints from version 1 on wait; there are ``seconds`` left, and a store that takes ``rate`` bytes a second.

    Parameters
    ----------
    how : str
        ``"task"``: the task is told; ``"SIGTERM"``: the agent is; ``"notice"``: a file says it.
    faults : dict
        What is wrong with which version.
    """

    store: str
    how: str
    seconds: float
    rate: float
    sizes: dict[int, int]
    faults: dict[int, str]

    def must(self) -> list[int]:
        """Versions that have to be durable in the end, newest first: those that fit if all newer ones that may fit go
        before them, and all newer ones that cannot be stored are tried in vain.
        """
        # The notice's file is looked for once a second.
        found, spent = [], NOTICE_LOOK_S if self.how == "notice" else 0.0
        for version in sorted(self.sizes, reverse=True):
            fault, sends = self.faults.get(version), self.sizes[version] / self.rate
            if fault is not None:
                # This S3 hears all of what it refuses.
                is_sent = fault in SENT or (fault == REFUSED and self.store == "s3")
                if spent + sends <= self.seconds * MAY_SHARE or not is_sent:
                    spent += COSTS_S[fault] + (sends if is_sent else 0.0)
                continue
            if spent + sends + COMMIT_S <= self.seconds * MUST_SHARE:
                found.append(version)
            if spent + sends <= self.seconds * MAY_SHARE:
                spent += sends + COMMIT_S
        return found


def draw(chance: random.Random) -> Preemption:
    """Any one."""
    seconds, rate = chance.uniform(3.5, 5.5), chance.uniform(0.7, 2) * 1e6
    count = chance.randint(3, 8)
    sizes = {
        version: int(seconds * rate * (chance.uniform(1.5, 3) if chance.random() < 0.15 else chance.uniform(0.02, 0.4)))
        for version in range(1, count + 1)
    }
    faults = {
        version: chance.choice(list(COSTS_S))
        for version in sizes
        if chance.random() < (0.6 if version == count else 0.3)
    }
    return Preemption(
        chance.choice(["local", "s3"]), chance.choice(["task", "SIGTERM", "notice"]), seconds, rate, sizes, faults
    )


@dataclass
class Outcome:
    """``durable``: when each version came into the store, in seconds after the word; ``problems``: what is wrong."""

    durable: dict[int, float]
    must: list[int]
    said: list[str]
    problems: list[str]


def run(case: Preemption, base: Path, patch: pytest.MonkeyPatch, *, to_the_end: bool = True) -> Outcome:
    """Let it happen, and judge; at the end of the time, or as soon as all is durable that must be."""
    task = Task(base, patch)
    notice = base / "notice"
    task.set(termination_grace_s=case.seconds, spot_notice_file=notice, max_bandwidth_bytes_s=int(case.rate))
    task.set(on_failure="warn")  # Or a save raises where an earlier one was refused.
    with (_on_s3 if case.store == "s3" else on_disk)(case, task, patch) as committed_at:
        said: list[str] = []
        checkpointer = task.start(report=said.append)
        _save(checkpointer, task, 0, int(case.rate * 1.3))  # So that the rate is known.
        checkpointer.wait("0.mfchckpt.0", 60)
        for version, size in case.sizes.items():
            _save(checkpointer, task, version, size)
            _damage(checkpointer, version, case.faults.get(version))
        begun = {version for version in case.sizes if checkpointer.state(f"0.mfchckpt.{version}")[0] != ADMITTED}
        told = time.time()
        left = _tell(case, checkpointer, notice)
        while time.time() < told + case.seconds and (to_the_end or not committed_at().keys() >= set(case.must())):
            time.sleep(0.02)
        durable = {version: at - told for version, at in committed_at().items() if version in case.sizes}
        _take_away(task, checkpointer)
        return _judge(case, durable, begun, [*said, " ".join(left)])


def _save(checkpointer: Checkpointer, task: Task, version: int, size: int) -> None:
    (task.work / "new").write_bytes(content(version, size))
    os.replace(task.work / "new", task.work / "weights")
    checkpointer.save(task.work, metadata={"number": version})


def _damage(checkpointer: Checkpointer, version: int, fault: str | None) -> None:
    item = checkpointer.spool.records.read(f"0.mfchckpt.{version}") if fault in (TORN, GONE) else None
    if item is not None:
        path = Path(item.file("weights"))
        with contextlib.suppress(FileNotFoundError):  # It may be on its way already, or have failed.
            path.unlink()
            if fault == TORN:
                path.write_bytes(b"torn")


def _tell(case: Preemption, checkpointer: Checkpointer, notice: Path) -> list[str]:
    """Say that the end is near; returns what the task is told of what is left, if it asks."""
    if case.how == "task":
        with contextlib.suppress(CheckpointError):
            return checkpointer.hurry(case.seconds)
    elif case.how == "SIGTERM":
        kill(agent_pid(checkpointer), signal.SIGTERM)
    else:
        when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=case.seconds)
        (notice.parent / "new-notice").write_text(when.isoformat())
        os.replace(notice.parent / "new-notice", notice)
    return []


def _take_away(task: Task, checkpointer: Checkpointer) -> None:
    """Kill everything but this process, which starts an agent again as long as it has something to say to it."""
    for end in (lambda: None, lambda: checkpointer.close(clean=False)):
        with contextlib.suppress(CheckpointError):
            end()
        while pids := task.processes():
            for pid in pids:
                kill(pid)
            time.sleep(0.01)


def _judge(case: Preemption, durable: dict[int, float], begun: set[int], said: list[str]) -> Outcome:
    must = case.must()
    problems = [f"{version} is not durable, and there was time" for version in must if version not in durable]
    problems += [f"{version} is durable, though it is {case.faults[version]}" for version in durable if version in
                 case.faults and case.faults[version] in (TORN, GONE, REFUSED, NO_COMMIT)]  # fmt: skip
    for newer in must[:1]:
        for older in durable:
            is_small = case.sizes[older] <= max(_SMALL_BYTES, case.sizes[newer] * _SMALL_SHARE)
            if older < newer and older not in begun and not is_small and durable[older] < durable.get(newer, 0.0):
                problems.append(f"{older} came before {newer}")
    text = "\n".join(said)
    unnamed = [v for v in case.sizes if v not in durable and f"0.mfchckpt.{v}" not in text]
    problems += [f"{version} is not in the store, and nobody was told" for version in unnamed]
    return Outcome(durable, must, said, problems)


# -- stores ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_disk(case: Preemption, task: Task, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[int, float]]]:
    """The task's store is a directory; yields when each version was committed (seconds, wall clock)."""
    folder = task.base / "weather"
    folder.mkdir()
    faults = {str(version): fault for version, fault in case.faults.items()}
    values = {"faults": faults, "rate": case.rate, "piece": _SLOW_PIECE, "pause": _SLOW_S}
    (folder / "sitecustomize.py").write_text(f"VALUES = {values!r}\n" + _SITECUSTOMIZE)
    patch.syspath_prepend(str(folder))
    task.set(local_fsync=0)
    whole: set[int] = set()

    def committed_at() -> dict[int, float]:
        found = {}
        for path in Path(task.store.root, TASK.task_folder).glob("*.metadata"):
            number = int(path.name.split(".")[2])
            if number not in whole:
                reference = json.loads(path.read_bytes())
                data = Path(task.store.root, reference["key"], "weights").read_bytes()
                assert data == content(number, reference["size"]), f"{number} is damaged"
                whole.add(number)
            found[number] = path.stat().st_mtime
        return found

    yield committed_at


@contextlib.contextmanager
def _on_s3(case: Preemption, task: Task, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[int, float]]]:
    s3 = MemoryS3()
    over = threading.Event()
    seen: dict[int, float] = {}

    def version_of(key: str) -> tuple[int | None, bool]:
        """Whose object it is, and whether it is the commit."""
        last = key.rpartition("/")[2].split(".")
        if last[-1] == "metadata" and TASK.task_folder in key:
            return int(last[2]), True
        parts = next((piece.split(".") for piece in key.split("/") if piece.count(".") == 3), None)
        return (int(parts[3]) if parts and parts[3].isdecimal() else None), False

    def inject(turn: Turn) -> bool:
        version, is_commit = version_of(turn.request.key)
        fault = case.faults.get(version) if version is not None and turn.request.method == "PUT" else None
        if fault is not None and is_commit == (fault in (NO_COMMIT, COMMIT_HANGS)):
            if fault in (HANGS, COMMIT_HANGS):
                turn.connection.hang()
            elif fault == SLOW:
                while not over.wait(_SLOW_S):
                    turn.connection.read(_SLOW_PIECE)
            elif fault in (REFUSED, NO_COMMIT, FAILS):
                turn.read_body()
                turn.send(error(500, "InternalError", "no") if fault == FAILS else error(403, "AccessDenied", "no"))
                return True
        turn.serve()
        if is_commit and version is not None:
            seen.setdefault(version, time.time())
        return True

    with FaultServer(s3) as server:
        server.inject = inject
        task.store = StoreSpec(
            "metaflow-s3", f"s3://{BUCKET}/root", {"client_params": dict(S3Server(server.url, 0).client_params)}
        )
        try:
            yield lambda: dict(seen)
        finally:
            over.set()


_SITECUSTOMIZE = """
import sys
if "uploader" in getattr(sys, "orig_argv", []):
    import time
    import anyio
    from async_ckpt.errors import StoreError, TransientStoreError
    from async_ckpt.stores.local import LocalStore

    put_content, put_if, free = LocalStore.put_content, LocalStore.put_if, 0.0

    def fault_of(key):
        last = key.rpartition("/")[2].split(".")
        if last[-1] == "metadata" and "/metadata/" in key:
            return VALUES["faults"].get(last[2]), True
        parts = next((piece.split(".") for piece in key.split("/") if piece.count(".") == 3), None)
        return (VALUES["faults"].get(parts[3]) if parts else None), False

    async def pass_through(count):
        global free
        now = time.monotonic()
        free = max(free, now) + count / VALUES["rate"]
        await anyio.sleep(free - now)

    async def slowly(self, key, source, progress=lambda count: None, log=None, earlier=None):
        fault, _ = fault_of(key)
        if fault == "refused":
            raise StoreError("The test refuses it")
        sent = 0
        while sent < source.size:
            piece = min(32768, source.size - sent)
            if fault == "slow":
                piece = min(VALUES["piece"], piece)
                await anyio.sleep(VALUES["pause"])
            else:
                await pass_through(piece)
            sent += piece
            progress(piece)
            if fault == "hangs" and sent > source.size / 2:
                await anyio.sleep(3600)
        if fault == "fails":
            raise TransientStoreError("The test fails it")
        return await put_content(self, key, source)

    async def commit(self, key, data, tag):
        fault, is_commit = fault_of(key)
        if is_commit and fault == "commit refused":
            raise StoreError("The test refuses the commit")
        if is_commit and fault == "commit hangs":
            await anyio.sleep(3600)
        return await put_if(self, key, data, tag)

    LocalStore.put_content, LocalStore.put_if = slowly, commit
"""
