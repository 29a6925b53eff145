"""Several ranks save one checkpoint: it is there with all their shards, or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from async_ckpt import layout
from async_ckpt.errors import FlushError, IntegrityError, NotFound, SpoolError, StoreError, UsageError, WaitTimeout
from async_ckpt.spool.journal import COMMITTED, FAILED
from async_ckpt.task import gang
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.flow_runs.environments import with_our_modules
from harness.tasks.gangs import Gang
from harness.tasks.task import TASK, Task, agent_pid, kill, wait_until
from tests.spread import spread

#: Those that only collective saves come by.
CRASH_POINTS = ("gather:before-outcome", "gather:after-outcome")


@pytest.fixture
def pair(task: Task) -> Gang:
    return Gang(task, 2)


def artifacts(task: Task) -> list[str]:
    """Keys of checkpoints of which some file lies in the store."""
    folder = Path(task.store.root, os.path.dirname(TASK.key("x", 0)))
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_it_is_visible_once_every_rank_has_saved(pair: Gang, tmp_path: Path) -> None:
    pair.start()
    first = pair.save(0, 1)
    wait_until(lambda: "rank 1" in pair.nodes[0].state(first.id)[1], "rank 0 waits for the other")
    assert first.state == "UPLOADED"
    assert pair.task.committed_versions() == []
    with pytest.raises(NotFound):
        pair.nodes[1].load(dict(first), str(tmp_path / "early"))
    second = pair.save(1, 1)
    assert second["key"] == first["key"]
    pair.flush()
    assert first.state == second.state == COMMITTED
    for node in pair.nodes:
        (listed,) = node.list()
        assert (listed["key"], listed["size"], listed["world"]) == (first["key"], first["size"] + second["size"], 2)
        node.load(first, str(tmp_path / str(node.task.node)))
        pair.assert_whole(tmp_path / str(node.task.node), 1)
        (committed,) = node.committed()
        assert json.loads(committed) == {name: value for name, value in listed.items() if name != "state"}
    assert pair.task.latest()["key"] == first["key"]


def test_versions_of_ranks_never_meet_and_collective_ones_are_the_same_everywhere(pair: Gang) -> None:
    pair.start()
    plain = [node.save(pair.folder(node.task.node)) for node in pair.nodes for _ in range(3)]
    assert sorted(reference["version_id"] for reference in plain) == list(range(6))
    pair.nodes[0].save(pair.folder(0))
    versions = [reference["version_id"] for reference in pair.save_all(1)]
    assert versions[0] == versions[1] > 8
    later = [node.save(pair.folder(node.task.node)) for node in pair.nodes]
    assert all(reference["version_id"] > versions[0] for reference in later)
    again = [reference["version_id"] for reference in pair.save_all(2)]
    assert again[0] == again[1] > max(reference["version_id"] for reference in later)
    pair.flush()
    assert len(pair.task.committed_versions()) == 7 + 1 + 2 + 1
    assert pair.task.latest()["version_id"] == again[0]
    listed = [[data["key"] for data in node.list()] for node in pair.nodes]
    assert listed[0] == listed[1]


def test_a_rank_that_never_shows_up_is_named_and_others_go_on(task: Task) -> None:
    task.set(collective_timeout_s=1)
    trio = Gang(task, 3).start()
    trio.save_all(1, [0, 1])
    trio.save_all(2, [1, 0, 2])  # Rank 2's first is of the others' first.
    plain = trio.nodes[0].save(trio.folder(0), name="plain")
    plain.wait(60)
    with pytest.raises(FlushError, match="rank 2 did not save"):
        trio.nodes[0].flush(60)
    with pytest.raises(FlushError):
        trio.nodes[1].flush(60)
    assert plain["version_id"] in task.committed_versions()


def test_a_save_that_fails_is_a_ranks_turn(pair: Gang) -> None:
    pair.task.set(collective_timeout_s=2)
    pair.start()
    pair.save(0, 1)
    with pytest.raises(Exception, match="nothing"):
        pair.nodes[1].save(pair.task.work / "nothing", collective=True, metadata={"number": 1})
    references = pair.save_all(2)
    for reference in references:
        reference.wait(60)
    with pytest.raises(FlushError, match="rank 1"):
        pair.nodes[0].flush(60)
    assert pair.task.committed_versions() == [references[0]["version_id"]]


def test_two_ranks_that_write_one_name_are_both_named(pair: Gang) -> None:
    pair.start()
    for node in range(2):
        (pair.folder(node) / "model.pt").write_text(str(node))
    references = pair.save_all(1)
    for reference in references:
        with pytest.raises(StoreError, match=r"Ranks 0 and 1 both write 'model\.pt'"):
            reference.wait(60)
    assert pair.task.committed_versions() == []


def test_ranks_whose_metadata_differs_do_not_save_the_same(pair: Gang) -> None:
    pair.start()
    references = [pair.save(0, 1), pair.save(1, 1, metadata={"number": 2})]
    for reference in references:
        with pytest.raises(StoreError, match="Ranks 0 and 1 do not save the same checkpoint"):
            reference.wait(60)


def test_ranks_that_count_differently_do_not_save_the_same(pair: Gang) -> None:
    pair.start()
    references = [pair.save(0, 1), pair.save(1, 1, rank=1, world_size=3)]
    for reference in references:
        with pytest.raises(StoreError, match="so many ranks, one says 2 and the other 3"):
            reference.wait(60)


def test_what_makes_no_sense_is_refused(pair: Gang) -> None:
    pair.start()
    refused: list[tuple[dict[str, object], str]] = [
        ({"storage_format": "tar"}, "storage_format='tar'"),
        ({"rank": 2, "world_size": 2}, "no rank of so many"),
        ({"rank": 0}, "belong together"),
        ({"rank": -1, "world_size": 2}, "no rank"),
        ({"collective": False, "rank": 0, "world_size": 2}, "for collective saves"),
    ]
    for options, complaint in refused:
        with pytest.raises(UsageError, match=complaint):
            pair.save(0, 1, **options)
        assert not pair.nodes[0].spool.records.ids()


def test_alone_nobody_knows_which_rank_it_is(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = task.start()
    with pytest.raises(UsageError, match="RANK and WORLD_SIZE"):
        checkpointer.save(task.work, collective=True)
    monkeypatch.setenv("RANK", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK='x'"):
        checkpointer.save(task.work, collective=True)


def test_processes_of_one_task_save_together(task: Task, tmp_path: Path) -> None:
    checkpointer = task.start()
    references = []
    for rank in range(3):
        folder = task.work / str(rank)
        folder.mkdir()
        (folder / f"shard-{rank}").write_text(str(rank))
        references.append(checkpointer.save(folder, collective=True, rank=rank, world_size=3))
    checkpointer.flush(60)
    assert len({reference["key"] for reference in references}) == 1
    assert len(checkpointer.committed()) == 1
    checkpointer.load(references[0], str(tmp_path / "loaded"))
    assert sorted(os.listdir(tmp_path / "loaded")) == ["shard-0", "shard-1", "shard-2"]


def test_ranks_that_were_started_again_count_from_the_same_number(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    task.set(collective_timeout_s=0.1, collective_grace_s=0.1)
    checkpointer = task.start()
    (task.work / "x").touch()
    save = {"collective": True, "world_size": 2}
    versions = [checkpointer.save(task.work, rank=0, **save)["version_id"] for _ in range(3)]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = [checkpointer.save(task.work, rank=rank, **save)["version_id"] for rank in range(2)]
    assert again[0] == again[1] > versions[-1]


def test_what_was_half_saved_before_all_ranks_were_started_again_is_given_up(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun does it in one attempt: the step must not wait for it, nor fail for it."""
    task.set(collective_grace_s=0.2)
    checkpointer = task.start()
    folders = [task.work / str(rank) for rank in range(2)]
    for folder in folders:
        folder.mkdir()
        (folder / f"shard-{folder.name}").write_text("1")
    half = checkpointer.save(folders[0], collective=True, rank=0, world_size=2)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    whole = [checkpointer.save(folder, collective=True, rank=int(folder.name), world_size=2) for folder in folders]
    checkpointer.flush(60)
    assert [reference.state for reference in (half, *whole)] == ["SUPERSEDED", COMMITTED, COMMITTED]
    assert "started again" in str(half.error)
    assert task.committed_versions() == [whole[0]["version_id"]]
    wait_until(lambda: half["key"].rpartition("/")[2] not in artifacts(task), "what was left is removed")


def test_a_rank_of_an_earlier_launch_takes_part_in_nothing_any_more(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.set(collective_timeout_s=0.1, collective_grace_s=0.1)
    checkpointer = task.start()
    (task.work / "x").touch()
    save = {"collective": True, "rank": 0, "world_size": 2}
    checkpointer.save(task.work, **save)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    checkpointer.save(task.work, **save)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    checkpointer.save(task.work, **save)  # The third launch: whoever counts its restarts may begin again with 0.
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    with pytest.raises(SpoolError, match="Rank 0 was started again since"):
        checkpointer.save(task.work, **save)


@pytest.mark.parametrize("fault", ["name", "counter"])
def test_a_turn_is_taken_by_a_save_that_fails_however_early(
    pair: Gang, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Else this rank's next part would be saved into the checkpoint that failed."""
    pair.task.set(collective_grace_s=0.1)
    pair.start()
    first = pair.save(0, 1)
    if fault == "name":
        with pytest.raises(UsageError):
            pair.save(1, 1, name="")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", _full)
            with pytest.raises(SpoolError):
                pair.save(1, 1)
    second = pair.save_all(2)
    second[0].wait(30)
    assert second[0]["key"] == second[1]["key"] != first["key"]
    assert first.state == "UPLOADED"
    pair.nodes[0].close(clean=False)


def _full(fd: int, data: bytes, at: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_part_that_goes_first_as_time_is_short_is_no_checkpoint(pair: Gang) -> None:
    gate = pair.task.gate()
    gate.hold("shard-0")
    pair.start()
    part = pair.save(0, 1)
    wait_until(lambda: gate.waiting("shard-0"), "it is uploaded")
    pair.nodes[0]._client.request("deadline", 10, seconds=600)
    gate.open("shard-0")
    wait_until(lambda: "rank 1" in pair.nodes[0].state(part.id)[1], "it waits for the other")
    assert pair.task.committed_versions() == []
    assert part.state == "UPLOADED"
    # What was held back for it goes on.
    alone = pair.nodes[0].save(pair.folder(0), name="alone")
    alone.wait(30)
    whole = pair.save(1, 1)
    whole.wait(30)
    pair.nodes[1].load(dict(whole), str(pair.task.work / "loaded"))
    pair.assert_whole(pair.task.work / "loaded", 1)


def test_metadata_without_a_json_value_is_the_same_on_all_ranks(pair: Gang) -> None:
    pair.start()
    names = [f"name {number}" for number in range(20)]
    parts = [
        pair.save(node, 1, metadata={"loss": math.nan, "model": object(), "names": set(names)}) for node in range(2)
    ]
    pair.flush()
    assert [part.state for part in parts] == [COMMITTED, COMMITTED]


def test_metadata_longer_than_a_frame_is_committed_on_all_ranks(pair: Gang) -> None:
    pair.start()
    metadata = {"text": "x" * ((1 << 20) - 100)}
    parts = [pair.save(node, 1, metadata=metadata) for node in range(2)]
    pair.flush()
    assert [part.state for part in parts] == [COMMITTED, COMMITTED]
    for node in pair.nodes:
        (committed,) = map(json.loads, node.committed())
        assert (committed["metadata"], committed["size"]) == (metadata, sum(part["size"] for part in parts))


def test_metadata_that_differs_and_is_long_is_not_shown_in_full(pair: Gang) -> None:
    pair.start()
    parts = [pair.save(node, 1, metadata={"indices": [node] * 90_000}) for node in range(2)]
    for part in parts:
        with pytest.raises(StoreError, match="do not save the same checkpoint") as caught:
            part.wait(30)
        assert len(str(caught.value)) < 5000


def test_two_nodes_that_save_as_one_rank_are_both_told(pair: Gang) -> None:
    pair.start()
    parts = [pair.save(node, 1, rank=0, world_size=1) for node in range(2)]
    wrong = [part for part in parts if _outcome(part) is not None]
    assert wrong, "the second, at least: the first may have been committed before"
    assert all(str(_outcome(part)).count("both save as rank 0") for part in wrong)


def _outcome(part: Reference) -> Exception | None:
    try:
        part.wait(30)
    except StoreError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}, "--max-restarts=0"),
        ({"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}, "Start one torchrun over all nodes"),
    ],
)
def test_a_torchrun_whose_ranks_cannot_be_told_apart_is_refused(
    pair: Gang, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], complaint: str
) -> None:
    pair.start()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=complaint):
        pair.save(0, 1)


def test_a_gang_of_one_saves_together(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_PARALLEL_NUM_NODES", "1")
    alone = Gang(task, 1).start()
    alone.save(0, 1).wait(30)
    assert len(task.committed_versions()) == 1


def test_ranks_whose_wrappers_differ_were_started_together(task: Task) -> None:
    """A shell of each rank is not what started it."""
    checkpointer = task.start()
    code = "from async_ckpt.ranks.who import find; from harness.tasks.task import TASK; print(find(TASK).launch)"
    environment = task.environment(checkpointer)
    launches = []
    for rank in range(2):
        own = {**environment, "RANK": str(rank), "WORLD_SIZE": "2"}
        wrapped = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code]
        launches.append(subprocess.run(wrapped, env=own, check=True, capture_output=True, text=True).stdout)
    assert launches[0] == launches[1] != ""
    again = (
        'import subprocess, sys; subprocess.run([sys.executable, "-c", sys.argv[1]], check=True, env=eval(sys.argv[2]))'
    )
    own = {**environment, "RANK": "0", "WORLD_SIZE": "2"}
    later = subprocess.run(
        [sys.executable, "-c", again, code, repr(own)], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert later != launches[0], "another process has started it"


def test_own_shards_go_to_their_ranks_and_only_while_there_are_as_many(pair: Gang, tmp_path: Path) -> None:
    pair.start()
    for node in range(2):
        (pair.folder(node) / f"epoch-{node}").touch()
        (pair.folder(node) / f"latest-{node}").symlink_to(f"epoch-{node}")
    reference = pair.save_all(1)[0]
    pair.flush()
    for node in pair.nodes:
        rank, target = node.task.node, tmp_path / str(node.task.node)
        node.load(reference, str(target), shard="own")
        assert sorted(os.listdir(target)) == [f"epoch-{rank}", f"latest-{rank}", f"shard-{rank}", f"step-{rank}"]
        assert os.readlink(target / f"latest-{rank}") == f"epoch-{rank}"
    other = Gang(pair.task, 3).start(attempt=1)
    with pytest.raises(UsageError, match="2 ranks saved the checkpoint, and there are 3 now"):
        other.nodes[0].load(reference, str(tmp_path / "other"), shard="own")
    other.nodes[2].load(reference, str(tmp_path / "all"))
    for node in range(2):
        (tmp_path / "all" / f"latest-{node}").unlink()
        (tmp_path / "all" / f"epoch-{node}").unlink()
    pair.assert_whole(tmp_path / "all", 1)


# -- deaths ------------------------------------------------------------------------------------------------------------


def load_newest(checkpointer: object) -> dict[str, object] | None:
    target = checkpointer.spool.new_work_directory()  # type: ignore[attr-defined]
    return gang.load_newest(checkpointer, "fresh", target)  # type: ignore[arg-type]


def test_a_retry_begins_with_the_last_one_all_ranks_had_saved_and_the_rest_is_removed(pair: Gang) -> None:
    pair.task.set(collective_grace_s=0.5, settle_timeout_s=0.5)
    pair.start().settle()
    whole = pair.save_all(1)
    pair.flush()
    part = pair.save(0, 2)
    wait_until(lambda: part.state == "UPLOADED", "its shard is in the store")
    for node in pair.nodes:
        kill(agent_pid(node))
    retry = Gang(pair.task, 2).start(attempt=1)
    retry.settle()
    loaded = retry.on_all(load_newest)
    assert [data["key"] for data in loaded] == [whole[0]["key"]] * 2
    assert part["key"].rpartition("/")[2] in artifacts(pair.task)
    retry.save_all(3)
    retry.flush()
    wait_until(lambda: part["key"].rpartition("/")[2] not in artifacts(pair.task), "what was left is removed")
    assert len(pair.task.committed_versions()) == 2


@pytest.mark.parametrize("point", [*CRASH_POINTS, "uploader:before-commit"])
def test_the_commit_is_done_by_the_next_uploader(pair: Gang, point: str) -> None:
    marker = pair.task.crash_at(point)
    pair.start()
    references = pair.save_all(1)
    pair.flush()
    assert marker.exists()
    assert [reference.state for reference in references] == [COMMITTED] * 2
    assert len(pair.task.committed_versions()) == 1


@pytest.mark.long
def test_what_all_had_saved_is_waited_for_by_the_retry_though_the_attempt_gave_up(pair: Gang) -> None:
    """One rank's upload takes longer than the others wait as they fail."""
    pair.task.set(collective_grace_s=0.2)
    gate = pair.task.gate()
    pair.start()
    pair.save_all(1)
    pair.flush()
    gate.hold("shard-1")
    parts = pair.save_all(2)
    with pytest.raises(FlushError, match="rank 1 did not save a part"):
        pair.nodes[0].flush(60, gather_s=0.2)
    for node in pair.nodes:
        node.close(clean=False)
    retry = Gang(pair.task, 2).start(attempt=1)
    threading.Timer(1.0, gate.open, ["shard-1"]).start()
    loaded = retry.on_all(load_newest)
    assert [data["key"] for data in loaded] == [parts[0]["key"]] * 2


def test_what_another_node_finds_damaged_is_passed_over_by_the_next_attempt(pair: Gang) -> None:
    pair.start()
    old = pair.save_all(1)[0]
    pair.flush()
    new = pair.save_all(2)[0]
    pair.flush()
    for node in pair.nodes:
        node.close(clean=False)
    Path(pair.task.store.root, new["key"], "shard-1").write_bytes(b"damaged")

    def load_own(checkpointer: Checkpointer) -> str:
        found = gang.load_newest(checkpointer, "fresh", checkpointer.spool.new_work_directory(), "own")
        assert found is not None
        return str(found["key"])

    retry = Gang(pair.task, 2).start(attempt=1)
    assert load_own(retry.nodes[0]) == new["key"], "its own part is whole"
    with pytest.raises(IntegrityError):
        load_own(retry.nodes[1])
    for node in retry.nodes:
        node.close(clean=False)
    assert Gang(pair.task, 2).start(attempt=2).on_all(load_own) == [old["key"]] * 2


def test_the_commit_is_done_by_a_retry_elsewhere(pair: Gang, tmp_path: Path) -> None:
    """The machine of rank 0 is gone, with all shards in the store."""
    pair.start()
    first = pair.save(0, 1)
    wait_until(lambda: first.state == "UPLOADED", "its shard is in the store")
    kill(agent_pid(pair.nodes[0]))
    second = pair.save(1, 1)
    wait_until(lambda: second.state == "UPLOADED", "the other one, too")
    pair.task.root = str(tmp_path / "elsewhere")
    retry = Gang(pair.task, 2).start(attempt=1)
    loaded = retry.on_all(load_newest)
    assert [data["key"] for data in loaded] == [first["key"]] * 2
    assert pair.task.committed() == [(0, first["version_id"])]


def test_nodes_that_hear_nothing_from_the_first_say_so(pair: Gang) -> None:
    pair.task.set(gang_start_timeout_s=0.3)
    pair.start(attempt=1)
    with pytest.raises(WaitTimeout, match="Node 0 of the gang has not said"):
        load_newest(pair.nodes[1])


def test_no_node_begins_with_another_checkpoint_than_the_first(pair: Gang) -> None:
    pair.start()
    references = pair.save_all(1)
    pair.flush()
    retry = Gang(pair.task, 2).start(attempt=1)
    load_newest(retry.nodes[0])
    Path(pair.task.store.root, references[0]["key"], "shard-1").write_bytes(b"damaged")
    target = retry.nodes[1].spool.new_work_directory()
    with pytest.raises(StoreError):
        gang.load_newest(retry.nodes[1], "fresh", target)
    assert os.listdir(target) == []


def test_what_a_gang_decided_stands_in_the_store_for_all(pair: Gang) -> None:
    pair.start(attempt=1)
    assert pair.on_all(load_newest) == [None, None]
    decision = json.loads(Path(pair.task.store.root, layout.decision_key(TASK.pathspec, 1)).read_text())
    assert decision == {"reference": None}


def test_a_failed_one_is_told_to_all(pair: Gang) -> None:
    pair.task.set(collective_timeout_s=0.5)
    pair.start()
    reference = pair.save(0, 1)
    wait_until(lambda: reference.state == FAILED, "rank 0 gives up")
    late = pair.save(1, 1)
    with pytest.raises(StoreError, match="rank 1 did not save"):
        late.wait(60)


_SAVE_AND_DIE = """
import os, signal, sys
from dataclasses import replace
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from harness.tasks.task import TASK
root, store, work, node = sys.argv[1:]
task = replace(TASK, node=int(node), nodes=2)
checkpointer = Checkpointer.start(root, task, StoreSpec("local", store), Config.from_env(), uploader="process")
checkpointer.save(work, collective=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("dead", "reaped"), spread([0, 1], [True, False]))
def test_a_rank_whose_task_has_died_is_not_waited_for(pair: Gang, dead: int, reaped: bool) -> None:
    """The other hears of it through the store, long before the time-out. Metaflow reaps its workers late."""
    task = pair.task
    pair.nodes = [pair.start_node(1 - dead)]
    (pair.folder(dead) / "mine").write_bytes(b"1")
    (pair.folder(1 - dead) / "yours").write_bytes(b"1")
    command = [sys.executable, "-c", _SAVE_AND_DIE, task.root, task.store.root, str(pair.folder(dead)), str(dead)]
    with subprocess.Popen(command, env=with_our_modules()) as process:
        if reaped:
            assert process.wait(60) == -signal.SIGKILL
        whole, part = (pair.nodes[0].save(pair.folder(1 - dead), collective=True) for _ in range(2))
        whole.wait(60)
        with pytest.raises(StoreError, match=f"rank {dead} died before saving"):
            part.wait(60)
    assert process.returncode == -signal.SIGKILL
    assert task.committed_versions() == [whole["version_id"]]


_ORPHAN = """
import os, signal, sys
from dataclasses import replace
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.errors import FlushError
from async_ckpt.stores.base import StoreSpec
from harness.tasks.task import TASK
root, store, work, said = sys.argv[1:]
lead = os.getpid()
if os.fork():
    signal.pause()
checkpointer = Checkpointer.start(
    root, replace(TASK, node=1, nodes=2), StoreSpec("local", store), Config.from_env(), uploader="process",
    gang_leader_pid=lead,
)
checkpointer.save(work, collective=True)
os.kill(lead, signal.SIGKILL)
try:
    checkpointer.flush(150)
    text = "it is content"
except FlushError as error:
    text = str(error)
checkpointer.close(clean=False)
with open(said + ".new", "w") as file:
    file.write(text)
os.rename(said + ".new", said)
"""


def test_a_worker_whose_control_task_was_killed_waits_no_longer(task: Task, tmp_path: Path) -> None:
    task.set(collective_grace_s=0.5)
    (task.work / "mine").write_bytes(b"1")
    said = tmp_path / "said"
    command = [sys.executable, "-c", _ORPHAN, task.root, task.store.root, str(task.work), str(said)]
    assert subprocess.run(command, env=with_our_modules()).returncode == -signal.SIGKILL
    wait_until(said.exists, "the orphan has ended its wait")
    assert "Rank 0 has not committed it" in said.read_text()
