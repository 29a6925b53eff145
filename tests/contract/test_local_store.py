"""LocalStore keeps the contract, and what only a directory can get wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from async_ckpt.capture.content import CapturedFile
from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.errors import IntegrityError, StoreError, TransientStoreError, UsageError
from async_ckpt.stores import local, open_store
from async_ckpt.stores.base import ListedObject, Store, StoreSpec
from async_ckpt.stores.local import LocalStore
from async_ckpt.stores.retry import RetryStore
from harness.files.filesystems import CLONING
from harness.stores.content import BytesContent, crcs_of, pattern

from .earlier_suite import EarlierSuite
from .store_suite import StoreSuite, run


class TestLocalStore(StoreSuite, EarlierSuite):
    copies_ranges = False

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.root = tmp_path_factory.mktemp("store") / ".metaflow"

    def make_store(self) -> LocalStore:
        return LocalStore(str(self.root))

    async def leftovers(self, store: Store) -> list[Any]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    def test_temporary_files_are_in_no_listing(self) -> None:
        async def check() -> None:
            store = self.make_store()
            listed: list[ListedObject] = []

            class Listing(BytesContent):
                def pread(self, count: int, offset: int) -> bytes:
                    listed.extend(ListedObject(str(path), 0) for path in (root / "a").rglob("*"))
                    return super().pread(count, offset)

            root = self.root
            await store.put_content("a/key", Listing(b"content"))
            assert listed == []
            with pytest.raises(UsageError):
                [entry async for entry in store.list(".async-ckpt-tmp")]

        run(check)

    def test_a_source_made_private_during_the_copy_is_copied_again(self, tmp_path: Path) -> None:
        # What the lease holder does: a private copy is renamed over the link, then the trainer writes to the old inode.
        clean, torn = pattern(3 * CHUNK_BYTES), b"\xff" * (3 * CHUNK_BYTES)
        source = tmp_path / "captured"
        source.write_bytes(clean)
        shared = os.open(source, os.O_WRONLY)
        done: list[int] = []
        sent: list[int] = []

        def progress(count: int) -> None:
            sent.append(count)
            if not done:
                done.append(1)
                (tmp_path / "private").write_bytes(clean)
                os.rename(tmp_path / "private", source)
                os.pwrite(shared, torn, 0)

        async def check() -> None:
            store = self.make_store()
            stored = await store.put_content("a/key", CapturedFile(str(source), len(clean)), progress)
            assert stored.crc32 == crcs_of(clean)
            assert await store.get_bytes("a/key") == clean
            assert sum(sent) == len(clean)

        run(check)
        os.close(shared)

    @pytest.mark.parametrize("size", [4, 6])
    def test_a_source_of_another_size_is_never_written(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "captured").write_bytes(b"12345")

        async def check() -> None:
            store = self.make_store()
            with pytest.raises(IntegrityError, match="captured"):
                await store.put_content("a/key", CapturedFile(str(tmp_path / "captured"), size))
            assert await self.nothing_under(store, "a/key")

        run(check)

    def test_folders_that_others_remove_all_the_time_do_not_fail_a_put(self) -> None:
        stop = threading.Event()

        def prune() -> None:
            while not stop.is_set():
                for folder in (self.root / "a" / "b", self.root / "a", self.root / ".async-ckpt-tmp"):
                    with contextlib.suppress(OSError):  # missing, or in use
                        os.rmdir(folder)

        async def check() -> None:
            store = RetryStore(self.make_store(), Config())  # Whoever is always quicker has to be outlasted.
            for number in range(300):
                await store.put_bytes(f"a/b/{number}", b"x")
                await store.delete(f"a/b/{number}")

        pruner = threading.Thread(target=prune)
        pruner.start()
        try:
            run(check)
        finally:
            stop.set()
            pruner.join()

    def test_delete_leaves_no_empty_folders_for_others_to_list(self) -> None:
        async def check() -> None:
            store = self.make_store()
            await store.put_bytes("a/b/c", b"x")
            await store.put_bytes("a/d", b"x")
            await store.delete("a/b/c")
            assert os.listdir(self.root / "a") == ["d"]
            await store.delete("a/d")
            assert self.root.is_dir()

        run(check)

    def test_a_full_disk_is_an_error_for_good_that_names_the_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(local, "pwrite_all", full)

        async def check() -> None:
            store = self.make_store()
            with pytest.raises(StoreError, match="No space left") as caught:
                await store.put_content("a/key", BytesContent(b"x"))
            assert not isinstance(caught.value, TransientStoreError)
            assert "Free some space" in str(caught.value)
            assert await self.leftovers(store) == []

        run(check)

    @pytest.mark.parametrize("number", [errno.EIO, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ESHUTDOWN])
    def test_what_a_network_disk_says_while_its_server_is_gone_may_pass(
        self, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def gone(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        async def check() -> None:
            store = self.make_store()
            with monkeypatch.context() as away:
                away.setattr(local, "sync_file", gone)
                for put in (store.put_content("a/key", BytesContent(b"x")), store.put_bytes("a/key", b"x")):
                    with pytest.raises(TransientStoreError):
                        await put
            await store.put_bytes("a/key", b"x")

        run(check)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_may_not_be_written_is_an_error_for_good(self) -> None:
        self.root.mkdir(mode=0o500)

        async def check() -> None:
            with pytest.raises(StoreError, match="Permission denied") as caught:
                await self.make_store().put_bytes("a/key", b"x")
            assert not isinstance(caught.value, TransientStoreError)

        run(check)

    def test_a_file_in_the_place_of_a_folder_is_an_error_that_names_it(self) -> None:
        async def check() -> None:
            store = self.make_store()
            await store.put_bytes("a", b"file")
            with pytest.raises(StoreError, match="a/key"):
                await store.put_bytes("a/key", b"x")
            assert await store.get_bytes("a") == b"file"

        run(check)

    def test_a_copy_is_a_second_name_where_files_cannot_be_cloned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "clone", lambda *_: False)

        async def check() -> None:
            store = self.make_store()
            await store.put_bytes("a/one", b"content")
            for _ in range(2):  # The second time, both are one file already: rename(2) does nothing then.
                await store.copy("a/one", "a/two", 7)
            assert os.path.samefile(self.root / "a/one", self.root / "a/two")
            assert sorted(os.path.basename(path) for path in await self.leftovers(store)) == ["one", "two"]

        run(check)

    @pytest.mark.parametrize("kind", CLONING)
    def test_a_copy_is_a_clone_where_files_can_be_cloned(self, on_filesystem: Callable[[str], Path], kind: str) -> None:
        self.root = on_filesystem(kind) / "store"

        async def check() -> None:
            store = self.make_store()
            await store.put_content("a/one", BytesContent(pattern(CHUNK_BYTES + 1)))
            await store.copy("a/one", "a/two", CHUNK_BYTES + 1)
            assert not os.path.samefile(self.root / "a/one", self.root / "a/two")
            assert await store.get_bytes("a/two") == pattern(CHUNK_BYTES + 1)

        run(check)

    @pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOENT])
    def test_a_copy_copies_where_no_link_can_be_made(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(local, "clone", lambda *_: False)
        monkeypatch.setattr(os, "link", refuse)

        async def check() -> None:
            store = self.make_store()
            await store.put_bytes("a/one", b"content")
            await store.copy("a/one", "a/two", 7)
            assert not os.path.samefile(self.root / "a/one", self.root / "a/two")
            assert await store.get_bytes("a/two") == b"content"

        run(check)

    @pytest.mark.parametrize("fsync", [True, False])
    @pytest.mark.parametrize("way", ["put_content", "put_bytes", "copy"])
    def test_an_object_is_on_the_disk_before_it_has_its_name(
        self, monkeypatch: pytest.MonkeyPatch, way: str, fsync: bool
    ) -> None:
        done: list[str] = []
        rename = os.rename

        def renamed(old: str, new: str) -> None:
            rename(old, new)
            done.append("name")

        store = self.make_store()
        store._durable = fsync
        run(lambda: store.put_bytes("a/source", b"content"))
        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(local, "sync_file", lambda fd: done.append("file"))
        monkeypatch.setattr(local, "sync_folder", lambda path: done.append(f"folder {os.path.basename(path)}"))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "put_content": lambda: store.put_content("b/key", BytesContent(b"content")),
            "put_bytes": lambda: store.put_bytes("b/key", b"content"),
            "copy": lambda: store.copy("a/source", "b/key", 7),
        }
        run(calls[way])
        assert done == (["file", "name", "folder b"] if fsync else ["name"])

    def test_what_a_killed_process_left_is_removed_a_day_later(self) -> None:
        temporary = self.root / ".async-ckpt-tmp"
        temporary.mkdir(parents=True)
        for name, age_s in (("old", 25 * 3600), ("new", 60)):
            (temporary / name).write_bytes(b"x")
            then = time.time() - age_s
            os.utime(temporary / name, (then, then))

        async def check() -> None:
            await self.make_store().put_bytes("a/key", b"x")
            assert os.listdir(temporary) == ["new"]

        run(check)


@pytest.mark.parametrize("way", ["whatever is there", "only if nothing is there"])
def test_a_small_write_that_a_disk_never_answers_is_left_behind_and_never_comes_after_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    answers, has_ended = threading.Event(), threading.Event()
    sync = local.sync_file
    hung: list[str] = []

    def sync_file(fd: int) -> None:
        if not hung:
            hung.append(os.readlink(f"/proc/self/fd/{fd}"))
            try:
                answers.wait(60)
            finally:
                has_ended.set()
        sync(fd)

    async def check() -> None:
        store = LocalStore(str(tmp_path))
        put = store.put_bytes if way == "whatever is there" else lambda key, data: store.put_if(key, data, None)
        with anyio.move_on_after(0.5) as scope:
            await put("a/key", b"earlier")
        assert scope.cancelled_caught
        await put("a/key", b"later")
        answers.set()
        assert await anyio.to_thread.run_sync(has_ended.wait, 60)
        while os.path.exists(hung[0]):
            await anyio.sleep(0.01)
        assert await store.get_bytes("a/key") == b"later"

    monkeypatch.setattr(local, "sync_file", sync_file)
    with anyio.from_thread.start_blocking_portal() as portal:
        began = time.monotonic()
        portal.call(check)
    assert time.monotonic() - began < 50


def test_opening_a_local_store_imports_neither_metaflow_nor_aiobotocore(tmp_path: Path) -> None:
    code = (
        "import sys; from async_ckpt.stores import open_store; from async_ckpt.stores.base import StoreSpec;"
        "from async_ckpt.config import Config;"
        f"open_store(StoreSpec('local', {str(tmp_path)!r}), Config());"
        "print([m for m in ('metaflow', 'aiobotocore', 'botocore', 'aiohttp') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


def test_a_store_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="ftp"):
        open_store(StoreSpec("ftp", "ftp://somewhere"), Config())
