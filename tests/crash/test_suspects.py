"""Checkpoints that kill whoever has them in hand, and moments in which nothing can be started."""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from pathlib import Path

import pytest

from async_ckpt.config import DEATHS_OF_AGENT, DEATHS_TO_SUSPECT
from async_ckpt.errors import FlushError
from async_ckpt.spool.journal import FAILED
from harness.kills import numbered_saves
from harness.kills.ledger import Ledger
from harness.kills.store_reader import Reader
from harness.tasks.repeated_saves import BIG, assert_all_in_order, save
from harness.tasks.task import Task, agent_pid, content, journal_lines, kill, wait_until
from tests.spread import first_of

#: What happens in an uploader that is about to store a file, or an object by another ``{call}``: ``{deed}`` with its
#: ``path``.
_SITECUSTOMIZE = """
import os, signal, sys
if "uploader" in getattr(sys, "orig_argv", []):
    from async_ckpt.stores.local import LocalStore
    stored = []

    def poisoned(function):
        async def call(self, key, *rest):
            path = key.split("/")[-1]
            {deed}
            found = await function(self, key, *rest)
            stored.append(path)
            return found
        return call

    LocalStore.{call} = poisoned(LocalStore.{call})
"""


def poison(task: Task, monkeypatch: pytest.MonkeyPatch, deed: str, call: str = "put_content") -> None:
    """Let uploaders do something that kills."""
    task.set(agent_pause_s=0.05)
    folder = task.base / "poison"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(deed=deed, call=call))
    monkeypatch.syspath_prepend(str(folder))


def save_five(task: Task, checkpointer: object, poisoned: int) -> None:
    for number in range(5):
        for path in task.work.iterdir():
            path.unlink()
        name = "poison" if number == poisoned else "weights"
        (task.work / name).write_bytes(content(number, BIG))
        checkpointer.save(task.work)  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", first_of(["SIGKILL", "SIGSEGV", "SIGBUS"]))
def test_one_checkpoint_that_kills_every_uploader_fails_alone_and_by_name(
    task: Task, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    poison(task, monkeypatch, f"path == 'poison' and os.kill(os.getpid(), signal.{number})")
    checkpointer = task.start()
    save_five(task, checkpointer, 1)
    with pytest.raises(
        FlushError, match=r"1 checkpoint is not in the store: 0\.mfchckpt\.1 \(The uploader died"
    ) as caught:
        checkpointer.flush(120)
    assert "agent.log" in str(caught.value)
    assert task.committed_versions() == [0, 2, 3, 4]


def test_one_that_kills_every_agent_fails_as_well(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent lives to count: what it had in hand stands in the journal."""
    poison(task, monkeypatch, "path == 'poison' and os.kill(os.getppid(), signal.SIGKILL)")
    checkpointer = task.start()
    save_five(task, checkpointer, 0)
    with pytest.raises(FlushError, match=r"1 checkpoint is not in the store: 0\.mfchckpt\.0 \(Whoever had it in hand"):
        checkpointer.flush(120)
    assert task.committed_versions() == [1, 2, 3, 4]
    tries = [line["tries"] for line in journal_lines(checkpointer) if line["id"] == "0.mfchckpt.0" and "tries" in line]
    assert max(tries, default=DEATHS_OF_AGENT) <= DEATHS_OF_AGENT


def test_one_whose_commit_kills_five_uploaders_is_committed_after_newer_ones_and_a_reader_can_tell_why(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``stress.kills`` looks with finds that it is out of order, but for what the journal says."""
    deaths = task.base / "deaths"
    deaths.touch()
    # Each death comes when both are uploaded: it would count for an upload of the newer one as well. After the last one
    # the older one is committed only when both readers have seen the newer one without it.
    deed = f"""from asyncio import sleep
            from glob import glob
            if path == '0.mfchckpt.0.metadata':
                if os.path.getsize({str(deaths)!r}) < {DEATHS_TO_SUSPECT}:
                    while open(glob({str(task.base / "spools/*/journal")!r})[0]).read().count("UPLOADED") < 2:
                        await sleep(0.01)
                    open({str(deaths)!r}, "a").write("x")
                    os.kill(os.getpid(), signal.SIGKILL)
                while not os.path.exists({str(task.base / "read")!r}):
                    await sleep(0.01)"""
    poison(task, monkeypatch, deed, "put_if")
    checkpointer, ledger, store = task.start(), Ledger(), Path(task.store.root)
    reader, blind = Reader(store, Path(checkpointer.spool.directory), ledger), Reader(store, task.base / "none", ledger)
    for number in range(2):
        numbered_saves.write(task.work, "linked", number, in_place=False)
        reference = checkpointer.save(task.work, metadata={"number": number, "kind": "linked"})
        ledger.take({"saved": [reference.id, number, "linked"], "seconds": [0, 0]})
    for each in (reader, blind):
        each.start()
    wait_until(blind.out_of_order, "the newer one is seen without the older one")
    looks = reader.looks
    wait_until(lambda: reader.looks > looks + 1, "the other one has looked at the newer one as well")
    (task.base / "read").touch()
    checkpointer.flush(120)
    for each in (reader, blind):
        each.over.set()
        each.join()
    assert task.committed_versions() == [0, 1]
    assert task.commit_time_ns(0) > task.commit_time_ns(1)
    assert (blind.out_of_order(), reader.out_of_order()) == ({"0.mfchckpt.0"}, set())
    assert [*ledger.errors, *reader.partial, *reader.backwards] == []


def test_who_gets_on_before_each_death_is_not_to_blame(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody kills uploaders all the time: each when the journal says that a file of it is stored."""
    files = f"open(glob({str(task.base / 'spools/*/journal')!r})[0]).read().count('\"file\"')"
    deed = f"""from asyncio import sleep
            from glob import glob
            call.before = {files} if not stored else call.before
            while stored:
                await sleep(0.01)
                if {files} > call.before:
                    open({str(task.base / "deaths")!r}, "a").write("x")
                    os.kill(os.getpid(), signal.SIGKILL)"""
    task.set(files_in_flight=1)
    poison(task, monkeypatch, deed)
    checkpointer = task.start()
    for number in range(12):
        (task.work / f"{number}").write_bytes(content(number, BIG))
    reference = checkpointer.save(task.work)
    checkpointer.flush(120)
    assert task.committed_versions() == [0]
    assert (task.base / "deaths").stat().st_size == 11
    assert all(task.stored(reference, f"{number}").read_bytes() == content(number, BIG) for number in range(12))


def test_uploaders_that_die_before_their_first_word_blame_nobody(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory for one, for a while."""
    task.set(agent_pause_s=0.1, agent_patience_s=600)
    folder = task.base / "short"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import os, sys\n'uploader' in sys.orig_argv and os.path.exists({str(folder / 'dying')!r}) and os._exit(137)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    wait_until(lambda: checkpointer.spool.start is not None, "no save waits for that any more")
    (folder / "dying").touch()
    kill(checkpointer.status()["uploader_pid"])
    references = [save(checkpointer, task, number) for number in range(2)]
    wait_until(lambda: lines, "it is said")
    assert "without a word" in lines[0]
    with pytest.raises(FlushError, match="2 checkpoints are not in the store"):
        checkpointer.flush(1)
    (folder / "dying").unlink()
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert len([line for line in lines if "The uploader cannot be had" in line]) == 1


def test_where_no_uploader_can_be_started_the_agent_uploads_by_itself(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter has vanished under the run, and the agent lives."""
    task.set(agent_patience_s=1, agent_pause_s=0.2)
    python = task.base / "python3"
    python.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(python))
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    wait_until(lambda: checkpointer.spool.start is not None, "the first uploader has claimed the start")
    python.unlink()
    agent, uploader = (checkpointer.status()[name] for name in ("pid", "uploader_pid"))
    kill(uploader)
    references = [save(checkpointer, task, number) for number in range(3)]
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert checkpointer.status()["pid"] == checkpointer.status()["uploader_pid"] == agent
    assert [line for line in lines if "The uploader cannot be had" in line and str(python) in line]


def test_an_agent_without_descriptors_goes_on_when_it_has_some_again(task: Task) -> None:
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    agent = checkpointer.status()["pid"]
    soft, hard = resource.prlimit(agent, resource.RLIMIT_NOFILE)
    resource.prlimit(agent, resource.RLIMIT_NOFILE, (3, hard))  # It keeps those that it has, and gets no more.
    references = [save(checkpointer, task, 0)]
    # (An uploader that was being started in that moment has no descriptors either, and ends without a word.)
    wait_until(lambda: any("Too many open files" in line for line in lines), "it is said")
    resource.prlimit(agent, resource.RLIMIT_NOFILE, (soft, hard))
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert checkpointer.status()["pid"] == agent


def test_a_checkpoint_that_has_failed_by_deaths_gets_another_chance_in_the_next_attempt(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(task, monkeypatch, "path == 'poison' and os.kill(os.getpid(), signal.SIGBUS)")
    checkpointer = task.start()
    (task.work / "poison").write_bytes(content(0, BIG))
    checkpointer.save(task.work)
    wait_until(lambda: checkpointer.state("0.mfchckpt.0")[0] == FAILED, "it has failed")
    checkpointer.close(clean=False)
    (task.base / "poison" / "sitecustomize.py").unlink()
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert task.committed() == [(0, 0)]
    assert Path(task.store.root).exists()
    assert agent_pid(checkpointer)


def test_a_moment_without_processes_and_threads_costs_only_that_moment(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.set(agent_pause_s=0.3)
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(2)]
    spawn, start, refused = os.posix_spawn, threading.Thread.start, list[str]()

    def refuse_process(*arguments: object, **keywords: object) -> int:
        if len(refused) < 6:
            refused.append("process")
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return spawn(*arguments, **keywords)  # type: ignore[arg-type]

    def refuse_thread(self: threading.Thread) -> None:
        if len(refused) < 9 and self.name.startswith("async_ckpt"):
            refused.append("thread")
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(os, "posix_spawn", refuse_process)
    monkeypatch.setattr(threading.Thread, "start", refuse_thread)
    kill(agent_pid(checkpointer))
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert refused.count("process") == 6
    assert "thread" in refused
