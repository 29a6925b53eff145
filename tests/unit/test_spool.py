"""The spool: one counter, admission by rename, and what it does about damage."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import IntegrityError, SpoolError
from async_ckpt.manifest import COPY, LINK, Directory, FileEntry, Manifest, Symlink
from async_ckpt.spool import records, snapshots
from async_ckpt.spool.records import Admitted, Records, torn_file
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system import mounts
from async_ckpt.system.mounts import down_from_mount
from harness.files.filesystems import CannotMount, small_tmpfs
from harness.flow_runs.environments import with_our_modules
from harness.tasks.task import TASK

STORE = StoreSpec("local", "/nowhere")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(str(tmp_path / "root"), TASK, STORE)


def reference(version: int, **fields: Any) -> dict[str, Any]:
    made = layout.reference(
        TASK, name="mfchckpt", version=version, url="/nowhere", size=3, metadata={}, storage_format="files", latest=True
    )
    return {**made, **fields}


def admit(spool: Spool, version: int, content: bytes = b"abc") -> Admitted:
    data = spool.snapshots.new_directory(spool.directory)
    os.mkdir(data)
    Path(data, "file").write_bytes(content)
    return spool.records.admit(reference(version), Manifest([FileEntry("file", len(content), 0o644)]), data, "/source")


def test_only_its_owner_can_enter_it(spool: Spool) -> None:
    for path in (spool.directory, os.path.dirname(spool.directory), spool.path("ready"), spool.path("data")):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_a_directory_others_could_write_to_is_closed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o777)
    (tmp_path / "root").chmod(0o777)
    Spool.create(str(tmp_path / "root"), TASK, STORE)
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700


def test_a_directory_that_somebody_else_prepared_is_refused(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to give a directory away")
    (tmp_path / "root").mkdir()
    os.chown(tmp_path / "root", 65534, 65534)
    with pytest.raises(SpoolError, match="belongs to somebody else") as caught:
        Spool.create(str(tmp_path / "root"), TASK, STORE)
    assert "SPOOL_DIR" in caught.value.hint


def test_a_symbolic_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").symlink_to("elsewhere")
    with pytest.raises(SpoolError, match="belongs to somebody else"):
        Spool.create(str(tmp_path / "root"), TASK, STORE)


def test_two_stores_of_one_task_have_two_spools(tmp_path: Path) -> None:
    one = Spool.create(str(tmp_path), TASK, STORE)
    other = Spool.create(str(tmp_path), TASK, StoreSpec("local", "/elsewhere"))
    assert one.directory != other.directory


def test_a_subprocess_opens_it_with_task_store_and_its_attempt(spool: Spool) -> None:
    opened = Spool.open(spool.directory, attempt=3)
    assert opened.task == layout.TaskInfo(**{**vars(TASK), "attempt": 3})
    assert opened.store == STORE


def test_a_spool_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="no spool") as caught:
        Spool.open(str(tmp_path / "gone"))
    assert "has ended" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 2, "task": {}, "store": {}}', '{"format": 1, "task": {"flow": "x"}}']
)
def test_a_spool_of_another_format_is_a_clear_error(spool: Spool, text: str) -> None:
    Path(spool.path("spool.json")).write_text(text)
    with pytest.raises(SpoolError, match="Not a spool of this version"):
        Spool.open(spool.directory)


def _take(directory: str, count: int, queue: Any) -> None:
    spool = Spool.open(directory)
    queue.put([spool.versions.next() for _ in range(count)])


def test_versions_from_many_processes_are_unique_and_without_gaps(spool: Spool) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_take, args=(spool.directory, 50, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    own = [spool.versions.next() for _ in range(50)]
    taken = [queue.get() for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(versions == sorted(versions) for versions in [own, *taken])
    assert sorted(own + [version for versions in taken for version in versions]) == list(range(200))
    queue.close()


def test_every_attempt_counts_from_zero(spool: Spool) -> None:
    assert [spool.versions.next(), spool.versions.next()] == [0, 1]
    assert Spool.open(spool.directory, attempt=1).versions.next() == 0


def test_a_record_comes_back_as_it_was_admitted(spool: Spool) -> None:
    name = os.fsdecode(b"odd-\xff\n name")
    manifest = Manifest(
        [FileEntry(name, 5, 0o640, LINK, 7, 123456789012345678), FileEntry("a/b", 0, 0o755)],
        [Directory("a", 0o750, 7)],
        [Symlink("l", "a/b")],
    )
    made = spool.records.admit(
        reference(0, metadata={"x": [1, None]}), manifest, spool.path("data", "1-x"), "/some/where"
    )
    assert spool.records.read(made.id) == made
    assert spool.records.ids() == [made.id]
    assert os.listdir(spool.path("staging")) == []


def test_looking_at_the_next_version_does_not_take_it(spool: Spool) -> None:
    for version in range(3):
        assert spool.versions.upcoming() == spool.versions.upcoming() == version
        assert spool.versions.next() == version


def test_pending_is_ordered_by_attempt_and_version(spool: Spool) -> None:
    for version in (10, 2, 9):
        admit(spool, version)
    assert [item.order for item in spool.records.pending()] == [(0, 2), (0, 9), (0, 10)]


def test_a_record_that_is_gone_is_no_error(spool: Spool) -> None:
    assert spool.records.read("0.x.0") is None
    spool.records.drop("0.x.0")


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"reference": 1}', "truncated", "no key", "path outside"])
def test_a_damaged_record_is_named_and_does_not_hide_the_others(spool: Spool, damage: str) -> None:
    whole, broken = admit(spool, 0), admit(spool, 1)
    path = Path(spool.path("ready", f"{broken.id}.json"))
    record = json.loads(path.read_text())
    if damage == "truncated":
        path.write_text(path.read_text()[:-20])
    elif damage == "no key":
        del record["reference"]["key"]
        path.write_text(json.dumps(record))
    elif damage == "path outside":
        record["manifest"]["files"][0]["path"] = "../../etc/passwd"
        path.write_text(json.dumps(record))
    else:
        path.write_text(damage)
    with pytest.raises(IntegrityError) as caught:
        spool.records.read(broken.id)
    assert caught.value.where == str(path)
    assert [item.id for item in spool.records.pending()] == [whole.id]
    assert path.exists()


def fill(path: Path) -> None:
    """Leave no space on a file system."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


def test_a_full_disk_admits_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    try:
        with small_tmpfs(tmp_path, 256 << 10) as folder:
            spool = Spool.create(str(folder / "root"), TASK, STORE)
            fill(folder / "filler")
            with pytest.raises(SpoolError, match="No space left") as caught:
                spool.records.admit(reference(0), Manifest(), spool.path("data", "1-x"), "/x")
            assert "METAFLOW_ASYNC_CKPT_SPOOL_DIR" in caught.value.hint
            assert spool.records.ids() == []
            assert os.listdir(spool.path("staging")) == []
            with pytest.raises(SpoolError, match="No space left"):
                Spool.create(str(folder / "another"), TASK, STORE)
            (folder / "filler").unlink()
            spool.records.admit(reference(0), Manifest(), spool.path("data", "1-x"), "/x")
            assert len(spool.records.ids()) == 1
    except CannotMount as error:
        pytest.skip(str(error))


# -- what savers that died left ----------------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_savers_are_swept_and_those_of_living_ones_stay(spool: Spool) -> None:
    dead, alive = spool.path("data", f"{dead_pid()}-aa"), spool.path("data", f"{os.getpid()}-bb")
    staged = spool.path("staging", f"{dead_pid()}-cc.json")
    for folder in (dead, alive):
        os.makedirs(os.path.join(folder, "sub"))
    Path(staged).write_text("{")
    spool.snapshots.sweep(spool.snapshots.leftovers())
    assert not os.path.exists(dead)
    assert not os.path.exists(staged)
    assert os.path.isdir(alive)


_ADMIT = """
import sys
from tests.unit.test_spool import Spool, admit
admit(Spool.open(sys.argv[1]), 5)
"""


def test_a_saver_that_admits_and_ends_while_leftovers_are_looked_for_loses_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from async_ckpt.agent.agent import Agent
    from async_ckpt.config import Config
    from async_ckpt.ipc import protocol

    pending, done = Records.pending, []

    def pending_then_save(self: Records) -> list[Admitted]:
        found = pending(self)
        if not done:
            done.append(True)
            subprocess.run([sys.executable, "-c", _ADMIT, spool.directory], check=True, env=with_our_modules())
        return found

    monkeypatch.setattr(Records, "pending", pending_then_save)
    listening = protocol.listen(str(tmp_path / "sock"))
    agent = Agent(spool, listening, Config(), guarded=False)
    agent._close()
    (item,) = pending(spool.records)
    assert Path(item.file("file")).read_bytes() == b"abc"


def test_what_is_given_up_in_the_moment_of_its_commit_is_not_called_lost(spool: Spool, tmp_path: Path) -> None:
    from async_ckpt.agent.agent import Agent
    from async_ckpt.ipc import protocol

    item = admit(spool, 0)
    listening = protocol.listen(str(tmp_path / "sock"))
    agent = Agent(spool, listening, Config(), guarded=False)
    agent.checkpoints.fail(agent.queue.jobs[item.id], "The store has taken nothing of it")
    assert len(agent.queue.failed()) == 1
    agent.dispatcher.on_message({"op": "committed", "id": item.id})  # It was on its way.
    assert agent.queue.failed() == []
    assert agent.queue.jobs[item.id].state == "COMMITTED"
    agent._close()


def test_a_spool_that_got_a_checkpoint_in_this_moment_is_not_taken_away(spool: Spool) -> None:
    item = admit(spool, 0)
    assert spool.set_aside(set()) is None
    assert spool.records.pending() == [item]
    assert Path(item.file("file")).read_bytes() == b"abc"


def test_an_empty_spool_is_taken_away_whole(spool: Spool) -> None:
    root = os.path.dirname(spool.directory)
    gone = spool.set_aside(set())
    assert gone is not None
    assert not os.path.exists(spool.directory)
    spool.remove(gone)
    assert os.listdir(root) == []


def test_the_work_directory_of_an_attempt_is_empty_and_removes_those_before_it(spool: Spool) -> None:
    first = spool.new_work_directory()
    Path(first, "old").touch()
    second = Spool.open(spool.directory, attempt=1).new_work_directory()
    assert os.listdir(second) == []
    assert not os.path.exists(first)


# -- annexes -----------------------------------------------------------------------------------------------------------


def test_the_annex_is_above_what_is_saved_and_the_folder_around_it(
    spool: Spool, on_filesystem: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = on_filesystem("tmpfs")
    if folder.stat().st_dev == os.stat(spool.directory).st_dev:
        pytest.skip("the temporary directory is on the same tmpfs")
    monkeypatch.setattr(snapshots, "down_from_mount", lambda path: down_from_mount(path)[-3:])
    (folder / "out" / "checkpoint-5").mkdir(parents=True)
    best = folder / "out" / "checkpoint-5" / "best.pt"
    best.touch()
    annexes = f".async_ckpt-{os.getuid()}"
    assert spool.snapshots.new_directory(str(best)).startswith(str(folder / annexes))
    # Where somebody else has the place, the next one below it is taken.
    (folder / annexes).rename(folder / "theirs")
    (folder / annexes).symlink_to(folder / "theirs")
    other = Spool.open(spool.directory)
    taken = [other.snapshots.new_directory(str(best)) for _ in range(2)]
    assert {os.path.dirname(path) for path in taken} == {other.snapshots._annex_for[str(best.parent)]}
    assert taken[0].startswith(str(folder / "out" / annexes))
    gone = spool.set_aside(set())
    assert gone is not None
    spool.remove(gone)
    assert os.listdir(folder / "out") == ["checkpoint-5"]


MOUNTS = b"""\
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 8:2 / /mnt/with\\040space rw,relatime shared:1 - ext4 /dev/sdb rw
3 1 8:2 /sub /mnt/with\\040space/bound rw - ext4 /dev/sdb rw
4 1 8:3 / /mnt/with rw - ext4 /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/mnt/with space/a/b", ["/mnt/with space", "/mnt/with space/a", "/mnt/with space/a/b"]),
        ("/mnt/with space/bound", ["/mnt/with space/bound"]),
        ("/mnt/without/a", ["/", "/mnt", "/mnt/without", "/mnt/without/a"]),
        ("/", ["/"]),
    ],
)
def test_directories_are_found_from_the_mount_point_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, found: list[str]
) -> None:
    (tmp_path / "mountinfo").write_bytes(MOUNTS)
    monkeypatch.setattr(mounts, "_MOUNTS", str(tmp_path / "mountinfo"))
    assert down_from_mount(path) == found
    monkeypatch.setattr(mounts, "_MOUNTS", str(tmp_path / "not there"))
    assert down_from_mount(path) == [path]


# -- torn files --------------------------------------------------------------------------------------------------------


def captured(tmp_path: Path, how: str) -> tuple[Admitted, Path]:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    status = path.stat()
    entry = FileEntry("file", 3, 0o644, how, status.st_ino, status.st_mtime_ns)
    return Admitted("0.x.0", {}, Manifest([entry]), str(tmp_path), ""), path


def test_an_untouched_link_is_not_torn(tmp_path: Path) -> None:
    item, _ = captured(tmp_path, LINK)
    assert torn_file(item, ()) is None


def test_a_link_with_another_time_is_torn_even_with_the_same_size(tmp_path: Path) -> None:
    item, path = captured(tmp_path, LINK)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert torn_file(item, ()) == "file"
    assert torn_file(item, {"file"}) is None


def test_a_private_copy_in_place_of_the_link_is_not_torn(tmp_path: Path) -> None:
    item, path = captured(tmp_path, LINK)
    (tmp_path / "copy").write_bytes(b"abc")
    os.utime(tmp_path / "copy", ns=(0, 0))
    os.rename(tmp_path / "copy", path)
    assert torn_file(item, ()) is None


@pytest.mark.parametrize("how", [LINK, COPY])
def test_a_missing_or_shorter_file_is_torn(tmp_path: Path, how: str) -> None:
    item, path = captured(tmp_path, how)
    os.truncate(path, 2)
    assert torn_file(item, ()) == "file"
    path.unlink()
    assert torn_file(item, ()) == "file"


def test_a_spool_that_is_taken_away_while_it_is_taken_up_is_known_to_be_gone(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an earlier attempt's agent, which had nothing left to do: the task's start makes a new one then."""
    real = os.mkdir

    def mkdir(path: str, *rest: Any, **named: Any) -> None:
        try:
            real(path, *rest, **named)
        except FileExistsError:
            if path == spool.path("staging"):
                os.rename(spool.directory, f"{spool.directory}.gone")
            raise

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(SpoolError) as caught:
        Spool.create(os.path.dirname(spool.directory), spool.task, spool.store)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_who_is_not_the_tasks_user_cannot_save_for_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may open any spool; what it wrote there could be read by nobody but root."""
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(SpoolError, match=f"belongs to user {user}, .*could not read .*sudo --user='#{user}'"):
        spool.snapshots.new_directory(spool.directory)
    assert os.listdir(spool.path("data")) == []


def test_a_record_that_may_not_be_read_is_a_checkpoint_that_fails_and_not_one_that_is_overlooked(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(records, "open", refuse, raising=False)
    with pytest.raises(IntegrityError, match=r"record of checkpoint 0\.x\.0 cannot be read: Permission denied"):
        spool.records.read("0.x.0")
