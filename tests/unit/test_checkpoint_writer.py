"""What an upload sends, copies and leaves out, and in which order a batch is committed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from hashlib import md5
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError, IntegrityError, NotFound, StoreError, TransientStoreError
from async_ckpt.manifest import COPY, LINK, FileEntry, Manifest, Symlink
from async_ckpt.spool.journal import TAR, CheckpointState, Known, Line, is_step, steps
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.unchanged import StoredFile
from async_ckpt.stores import catalog
from async_ckpt.stores.base import Stored
from async_ckpt.upload import checkpoint as writer_module
from async_ckpt.upload.checkpoint import CheckpointWriter
from harness.stores.content import crcs_of, pattern
from harness.stores.memory import MemoryStore
from harness.tasks.task import TASK

FOLDER = TASK.task_folder
SIZE = 3 << 20


def reference(
    version: int, *, attempt: int = 0, latest: bool = True, storage_format: str = "files", run: str = TASK.run,
    now: datetime | None = None,
) -> dict[str, Any]:  # fmt: skip
    task = layout.TaskInfo(**{**vars(TASK), "attempt": attempt, "run": run})
    return layout.reference(
        task, name="a", version=version, url="memory://", size=SIZE, metadata={}, storage_format=storage_format,
        latest=latest, now=now or datetime(2026, 1, attempt + 1, second=version, tzinfo=timezone.utc),
    )  # fmt: skip


class Heard:
    """Events as journal lines would keep them."""

    def __init__(self) -> None:
        self.known = Known()
        self.bytes = 0
        self.bytes_copied = 0

    @property
    def progress_known(self) -> CheckpointState:
        return self.known.checkpoints.get("0.a.1", CheckpointState())

    def progress(self, count: int) -> None:
        self.bytes += count

    def copied(self, count: int) -> None:
        self.bytes_copied += count

    def note(self, line: Line) -> None:
        said = {"id": "0.a.1", **line}
        assert is_step(said)
        self.known.apply(said)

    def told_again(self) -> CheckpointState:
        """What the next try is told, over a socket."""
        told = Known()
        for line in steps("0.a.1", self.progress_known):
            told.apply(json.loads(json.dumps(line)))
        return told.checkpoints.get("0.a.1", CheckpointState())


@pytest.fixture
def item(tmp_path: Path) -> Admitted:
    (tmp_path / "weights").write_bytes(pattern(SIZE))
    (tmp_path / "small").write_bytes(b"s")
    files = [FileEntry("weights", SIZE, 0o644, LINK), FileEntry("small", 1, 0o644, COPY)]
    return Admitted("0.a.1", reference(1), Manifest(files), str(tmp_path), "/source")


def upload(store: MemoryStore, item: Admitted, heard: Heard, unchanged: dict[str, StoredFile] | None = None) -> None:
    anyio.run(CheckpointWriter(store, Config()).upload, item, heard.told_again(), unchanged or {}, heard)


OLD = {"weights": StoredFile("old", Stored([1], etag=md5(pattern(SIZE), usedforsecurity=False).hexdigest()))}


def test_an_unchanged_file_is_copied_and_its_digests_are_taken_over(item: Admitted) -> None:
    store, heard = MemoryStore(), Heard()
    store.objects["old"] = pattern(SIZE)
    upload(store, item, heard, OLD)
    assert store.objects[f"{item.reference['key']}/weights"] == pattern(SIZE)
    assert heard.bytes_copied == SIZE
    assert heard.bytes == 1
    manifest = json.loads(store.objects[item.reference["manifest"]])
    assert manifest["files"][0]["crc32"] == [1]
    assert list(heard.progress_known.files) == ["weights"], "small files without a lease are not worth a line"


@pytest.mark.parametrize("error", [NotFound("gone"), StoreError("not possible"), IntegrityError("damaged")])
def test_what_cannot_be_copied_is_sent(item: Admitted, error: Exception) -> None:
    store, heard = MemoryStore(), Heard()

    def refuse(operation: str, key: str) -> None:
        if operation == "copy":
            raise error

    store.before = refuse
    upload(store, item, heard, OLD)
    assert heard.bytes_copied == 0
    assert heard.progress_known.files["weights"].crc32 == crcs_of(pattern(SIZE))


def test_what_cannot_be_told_from_another_object_is_sent(item: Admitted) -> None:
    """An earlier version's journal knows no ETag: whatever lies under that key by now may be somebody else's."""
    store, heard = MemoryStore(), Heard()
    store.objects["old"] = pattern(SIZE)[::-1]
    upload(store, item, heard, {"weights": StoredFile("old", Stored([1]))})
    assert store.objects[f"{item.reference['key']}/weights"] == pattern(SIZE)
    assert heard.bytes_copied == 0


LINKS = [Symlink("last", "weights"), Symlink("best", "last"), Symlink("nowhere", "missing"), Symlink("here", ".")]


@pytest.mark.parametrize("copies", [True, False])
def test_files_behind_links_are_stored_for_clients_that_know_no_links(
    item: Admitted, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    store, heard = MemoryStore(), Heard()
    if not copies:
        monkeypatch.setattr(store, "capabilities", type(store.capabilities)())
    upload(store, dataclasses.replace(item, manifest=Manifest(item.manifest.files, links=LINKS)), heard)
    key = item.reference["key"]
    files = {name[len(key) + 1 :]: data for name, data in store.objects.items() if name.startswith(f"{key}/")}
    assert files == {"weights": pattern(SIZE), "small": b"s", "last": pattern(SIZE), "best": pattern(SIZE)}
    assert heard.bytes == SIZE + 1, "what lies behind links is no more progress"
    stored = json.loads(store.objects[item.reference["manifest"]])
    assert [entry["path"] for entry in stored["files"]] == ["weights", "small"]
    assert stored["links"] == [[link.path, link.target] for link in LINKS]


def test_more_files_behind_links_than_the_limit_are_left_out_and_that_is_said(item: Admitted) -> None:
    store, links = MemoryStore(), [Symlink(f"link-{number}", "small") for number in range(5)]
    writer = CheckpointWriter(store, Config(max_files_behind_links=3))
    linked = dataclasses.replace(item, manifest=Manifest(item.manifest.files, links=links))
    anyio.run(writer.upload, linked, CheckpointState(), {}, Heard())
    assert len([name for name in store.objects if "/link-" in name]) == 3
    assert "lead to 5 files, of which 3" in writer.notice


def test_an_outage_during_a_copy_is_one_of_the_upload(item: Admitted) -> None:
    store = MemoryStore()

    def fail(operation: str, key: str) -> None:
        raise TransientStoreError("busy")

    store.before = fail
    with pytest.raises(TransientStoreError):
        upload(store, item, Heard(), OLD)
    assert [operation for operation, _ in store.asked if operation == "put"] in ([], ["put"])


def test_a_store_that_cannot_copy_is_not_asked_to(item: Admitted, monkeypatch: pytest.MonkeyPatch) -> None:
    store, heard = MemoryStore(), Heard()
    monkeypatch.setattr(store, "capabilities", type(store.capabilities)())
    upload(store, item, heard, OLD)
    assert store.keys("copy") == []


@pytest.mark.parametrize("storage_format", ["files", "tar"])
def test_parts_that_are_in_the_store_are_not_sent_again(item: Admitted, storage_format: str) -> None:
    item.reference["storage_format"] = storage_format
    store, heard = MemoryStore(part_bytes=1 << 20), Heard()

    def fail(operation: str, key: str) -> None:
        if key.endswith("#3"):
            raise TransientStoreError("busy")

    store.before = fail
    for _ in range(2):
        with pytest.raises(TransientStoreError):
            upload(store, item, heard)
    store.before = lambda operation, key: None
    upload(store, item, heard)
    parts = [key.rpartition("#")[2] for key in store.keys("part")]
    assert parts == ["1", "2", "3", "3", "3", *(["4"] if storage_format == "tar" else [])]
    assert store.uploads == 1
    assert heard.progress_known.parts == {}
    again = MemoryStore()
    upload(again, item, heard)
    path = TAR if storage_format == "tar" else "weights"
    assert path in heard.progress_known.files
    assert not [key for key in again.keys("put") if key.endswith(("weights", item.reference["key"]))], "sent again"


# -- commits -----------------------------------------------------------------------------------------------------------


def commit(store: MemoryStore, batch: list[dict[str, Any]]) -> tuple[int, CheckpointError | None]:
    return anyio.run(committed, CheckpointWriter(store, Config()), batch)


async def committed(writer: CheckpointWriter, batch: list[dict[str, Any]]) -> tuple[int, CheckpointError | None]:
    """How many of a batch are committed, and why the next one is not."""
    heard: list[dict[str, Any]] = []

    async def hear(reference: dict[str, Any]) -> None:
        heard.append(reference)

    try:
        await writer.commit(batch, hear)
    except CheckpointError as error:
        return len(heard), error
    return len(heard), None


def newest(store: MemoryStore, attempt: int = 1) -> dict[str, Any] | None:
    task = layout.TaskInfo(**{**vars(TASK), "attempt": attempt})
    return anyio.run(catalog.newest_of_task, store, task, Config())


def listed(store: MemoryStore) -> dict[str, Any] | None:
    """What a look at all metadata finds: the truth."""
    found = [json.loads(data) for key, data in store.objects.items() if key.startswith(f"{FOLDER}/0.")]
    found += [json.loads(data) for key, data in store.objects.items() if key.startswith(f"{FOLDER}/1.")]
    return max((data for data in found if data["latest"]), key=layout.order, default=None)


def test_a_batch_is_described_first_then_committed_in_order_then_latest_moves_once() -> None:
    store, batch = MemoryStore(), [reference(version) for version in range(4)]
    assert commit(store, batch) == (4, None)
    puts = [key.removeprefix(f"{layout.ROOT}/") for key in store.keys("put")]
    assert sorted(key.split("/")[0] for key in puts[:5]) == ["artifact_metadata"] * 4 + ["begun"]
    assert [key.rpartition("/")[2] for key in puts[5:9]] == [f"0.a.{version}.metadata" for version in range(4)]
    assert sorted(key.split("/")[0] for key in puts[9:]) == ["artifact_metadata", "metadata"]
    assert json.loads(store.objects[f"{FOLDER}/latest"])["version_id"] == 3
    assert json.loads(store.objects[f"{TASK.scope_folder}/latest"])["version_id"] == 3


def test_latest_is_the_newest_of_the_batch_that_wants_to_be() -> None:
    store = MemoryStore()
    assert commit(store, [reference(0), reference(1), reference(2, latest=False)]) == (3, None)
    assert json.loads(store.objects[f"{FOLDER}/latest"])["version_id"] == 1
    assert commit(store, [reference(3, latest=False)]) == (1, None)
    assert json.loads(store.objects[f"{FOLDER}/latest"])["version_id"] == 1


def test_latest_never_moves_backwards() -> None:
    store = MemoryStore()
    commit(store, [reference(0, attempt=1)])
    commit(store, [reference(7)])
    assert json.loads(store.objects[f"{FOLDER}/latest"])["attempt"] == 1
    assert newest(store) == reference(0, attempt=1)


@pytest.mark.parametrize("between", [reference(0, attempt=1), reference(6), None], ids=["newer", "older", "removed"])
def test_latest_that_another_writer_moves_in_this_moment_ends_on_the_newest(between: dict[str, Any] | None) -> None:
    """It is moved between our look at it and our write."""
    store, key = MemoryStore(), f"{FOLDER}/latest"
    commit(store, [reference(5)])

    def others(operation: str, asked: str) -> None:
        if operation == "put" and asked == key:
            store.before = lambda operation, key: None
            if between is None:
                del store.objects[key]
            else:
                store.objects[key] = json.dumps(between).encode()

    store.before = others
    commit(store, [reference(7)])
    assert json.loads(store.objects[key]) == max(filter(None, [between, reference(7)]), key=layout.order)


NOW = datetime.now(timezone.utc)


def ago(**how_long: float) -> datetime:
    return NOW - timedelta(**how_long)


def old(reference: dict[str, Any], zone_hours: int) -> dict[str, Any]:
    """As metaflow-checkpoint wrote it on a machine of that zone: the time of its wall clock, and no zone."""
    at = datetime.fromisoformat(reference["created_at"]).astimezone(timezone(timedelta(hours=zone_hours)))
    kept = {name: value for name, value in reference.items() if name not in ("created_at", "latest", "manifest")}
    return {**kept, "created_on": at.replace(tzinfo=None).isoformat()}


@pytest.mark.parametrize(
    "before",
    [
        old(reference(9, run="laptop", now=ago(minutes=5)), 10),
        old(reference(9, run="laptop", now=ago(minutes=5)), -12),
        old(reference(9, run="laptop", now=ago(minutes=5)), 14),
        reference(9, run="laptop", now=ago(minutes=5).astimezone(timezone(timedelta(hours=10)))),
        reference(9, run="laptop", now=ago(days=-400)),
        {**reference(9, run="laptop"), "created_at": "yesterday", "created_on": None},
    ],
    ids=["Sydney, no zone", "the last place on Earth", "Kiritimati", "Sydney", "a clock in the future", "no time"],
)
def test_the_latest_of_a_step_moves_on_to_what_was_saved_later_whatever_the_zone_of_the_one_before(
    before: dict[str, Any],
) -> None:
    store, key = MemoryStore(), f"{TASK.scope_folder}/latest"
    store.objects[key] = json.dumps(before).encode()
    commit(store, [reference(0, run="server", now=ago(seconds=2))])
    assert json.loads(store.objects[key])["pathspec"].split("/")[1] == "server"


def test_the_latest_of_a_step_stays_on_what_another_run_saved_later() -> None:
    store, key = MemoryStore(), f"{TASK.scope_folder}/latest"
    commit(store, [reference(0, run="later", now=ago(seconds=1))])
    commit(store, [reference(5, run="earlier", now=ago(hours=1))])
    assert json.loads(store.objects[key])["pathspec"].split("/")[1] == "later"


def test_where_the_latest_of_a_step_is_gone_the_one_saved_last_is_found_among_those_listed() -> None:
    store = MemoryStore()
    last = reference(0, run="last", now=ago(seconds=1))
    commit(store, [last])
    commit(store, [reference(5, run="earlier", now=ago(hours=1))])
    laptop = old(reference(9, run="laptop", now=ago(minutes=5)), 10)
    store.objects[layout.parse_key(laptop["key"]).metadata_key] = json.dumps(laptop).encode()
    del store.objects[f"{TASK.scope_folder}/latest"]
    assert anyio.run(catalog.newest_of_step, store, TASK.scope_folder, Config()) == last


def test_a_clock_that_goes_backwards_moves_the_latest_of_its_own_task_all_the_same() -> None:
    store = MemoryStore()
    commit(store, [reference(0, now=ago(days=-2))])
    commit(store, [reference(1, now=ago(hours=1))])
    for folder in (TASK.task_folder, TASK.scope_folder):
        assert json.loads(store.objects[f"{folder}/latest"])["version_id"] == 1
    commit(store, [reference(0, now=ago(days=-2))])
    for folder in (TASK.task_folder, TASK.scope_folder):
        assert json.loads(store.objects[f"{folder}/latest"])["version_id"] == 1


def committed_and_said(store: MemoryStore, *batches: list[dict[str, Any]]) -> tuple[list[int], str]:
    """How many of each batch one uploader commits, and what it says to the user in the end."""

    async def check() -> tuple[list[int], str]:
        writer = CheckpointWriter(store, Config(latest_timeout_s=5))
        return [(await committed(writer, batch))[0] for batch in batches], writer.notice

    return anyio.run(check)


def test_a_latest_that_others_move_all_the_time_holds_up_no_commit_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MOVE_LATEST_PAUSE_S", 0.0)
    store, key = MemoryStore(), f"{FOLDER}/latest"
    commit(store, [reference(0)])
    moved = 0

    def others(operation: str, asked: str) -> None:
        nonlocal moved
        if operation == "put" and asked == key:
            moved += 1
            store.objects[key] = json.dumps({**reference(1), "moved": moved}).encode()

    store.before = others
    assert committed_and_said(store, [reference(7)])[0] == [1]
    assert moved == writer_module._MOVES
    assert newest(store) == listed(store) == reference(7)


@pytest.mark.parametrize("error", [StoreError, TransientStoreError])
def test_a_latest_that_cannot_be_moved_is_moved_with_the_next_commit(error: type[StoreError]) -> None:
    store, refused = MemoryStore(), 0

    def refuse(operation: str, key: str) -> None:
        nonlocal refused
        if operation == "put" and key.endswith("/latest") and refused < 2:
            refused += 1
            raise error("not today", where=key)

    store.before = refuse
    committed, said = committed_and_said(store, [reference(0)], [reference(1, latest=False)])
    assert committed == [1, 1]
    assert "not today" in said
    assert json.loads(store.objects[f"{FOLDER}/latest"])["version_id"] == 0


@pytest.mark.parametrize("refused", [f"{FOLDER}/0.a.2.metadata", layout.parse_key(reference(2)["key"]).metadata_key])
def test_a_batch_ends_at_the_first_that_the_store_refuses(refused: str) -> None:
    store = MemoryStore()

    def refuse(operation: str, key: str) -> None:
        if operation == "put" and key == refused:
            raise StoreError("no", where=key)

    store.before = refuse
    committed, error = commit(store, [reference(version) for version in range(4)])
    assert committed == 2
    assert error is not None
    assert error.where == refused
    assert json.loads(store.objects[f"{FOLDER}/latest"])["version_id"] == 1
    assert newest(store) == listed(store) == reference(1)


def test_nothing_is_committed_that_begun_could_not_follow() -> None:
    store = MemoryStore()

    def refuse(operation: str, key: str) -> None:
        if operation == "put" and "begun/" in key:
            raise TransientStoreError("no", where=key)

    store.before = refuse
    committed, error = commit(store, [reference(0), reference(1)])
    assert committed == 0
    assert isinstance(error, TransientStoreError)
    assert newest(store) == listed(store)


class Death(BaseException):
    """The uploader is killed."""


def dying(after: int) -> Callable[[str, str], None]:
    left = after

    def die(operation: str, key: str) -> None:
        nonlocal left
        if operation == "put":
            if left == 0:
                raise Death
            left -= 1

    return die


def histories() -> list[list[list[dict[str, Any]]]]:
    return [
        [[reference(0)], [reference(1), reference(2), reference(3)]],
        [[reference(0), reference(1)], [reference(2, latest=False)], [reference(3, latest=False), reference(4)]],
        [[reference(8)], [reference(9), reference(0, attempt=1)], [reference(1, attempt=1)]],
        [[reference(0, attempt=1)], [reference(5), reference(6)], [reference(1, attempt=1, latest=False)]],
    ]


@pytest.mark.parametrize("history", histories())
def test_the_newest_is_found_without_listing_wherever_the_writer_died(history: list[list[dict[str, Any]]]) -> None:
    for puts in range(40):
        store = MemoryStore()
        store.before = dying(puts)
        try:
            for batch in history:
                commit(store, batch)
        except BaseException as death:
            if not _is_death(death):
                raise
        store.before = lambda operation, key: None
        assert newest(store) == listed(store), f"died before write {puts}"
        # Only where nothing of what was begun was committed is there need to list.
        anyio.run(_commit_all, store, history)
        store.asked.clear()
        assert newest(store) == listed(store)
        assert store.keys("list") == [layout.begun_folder(TASK.pathspec)]


@pytest.mark.parametrize("versions", [[0, 5, 3, 1, 4], [9, 8, 7], [0, 1, 5, 2, 6]])
def test_a_newer_one_committed_first_is_not_hidden_by_older_ones_wherever_a_writer_died(versions: list[int]) -> None:
    # When time is short the newest goes first. What is committed is not committed again by the next uploader.
    for puts in range(30):
        store = MemoryStore()
        store.before = dying(puts)
        for version in versions:
            try:
                commit(store, [reference(version)])
            except BaseException as death:
                if not _is_death(death):
                    raise
                store.before = lambda operation, key: None
                if f"{FOLDER}/0.a.{version}.metadata" not in store.objects:
                    commit(store, [reference(version)])
            assert newest(store) == listed(store), f"died before write {puts}, then came {version}"
        store.before = lambda operation, key: None
        commit(store, [reference(min(versions))])  # With any later commit the hint catches up.
        latest = json.loads(store.objects[f"{FOLDER}/latest"])
        assert latest == listed(store), f"died before write {puts}"


async def _commit_all(store: MemoryStore, history: list[list[dict[str, Any]]]) -> None:
    for batch in history:
        assert await committed(CheckpointWriter(store, Config()), batch) == (len(batch), None)


def _is_death(error: BaseException) -> bool:
    return isinstance(error, Death) or any(map(_is_death, getattr(error, "exceptions", ())))


def test_checkpoints_of_other_clients_are_found_by_listing() -> None:
    store = MemoryStore()
    commit(store, [reference(0), reference(1)])
    for key in [key for key in store.objects if "/begun/" in key]:
        del store.objects[key]
    store.objects[f"{FOLDER}/0.a.2.metadata"] = json.dumps(reference(2)).encode()
    assert newest(store) == reference(2)
    del store.objects[f"{FOLDER}/latest"]
    assert newest(store) == reference(2)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b'{"keys": 5}', b'{"keys": ["../x"]}', b'{"keys": [5]}'])
def test_a_damaged_begun_says_nothing(damage: bytes) -> None:
    store = MemoryStore()
    commit(store, [reference(0)])
    store.objects[layout.begun_key(TASK.pathspec, 0)] = damage
    store.objects[f"{FOLDER}/0.a.2.metadata"] = json.dumps(reference(2)).encode()
    assert newest(store) == reference(2)


def test_a_task_without_checkpoints_has_no_newest() -> None:
    assert newest(MemoryStore()) is None
