"""What every store must do. Subclass ``StoreSuite``, say how to make a store, and all of it is tested."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from async_ckpt.capture.content import CapturedFile
from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.errors import IntegrityError, NotFound, StoreError, TransientStoreError, UsageError
from async_ckpt.stores.base import Content, ListedObject, Store
from async_ckpt.stores.retry import RetryStore
from harness.stores.content import BytesContent, crcs_of, pattern

T = TypeVar("T")

LARGE = 2 * CHUNK_BYTES + 1_000_003
SIZES = [0, 1, 1_000_003, CHUNK_BYTES, LARGE]
DAMAGED_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a/.", "a\0b"]


def run(function: Callable[[], Awaitable[T]], *, timeout_s: float = 60.0) -> T:
    """Run a test's coroutine function in a new event loop."""

    async def main() -> T:
        with anyio.fail_after(timeout_s):
            return await function()

    return anyio.run(main)


class FailingContent(BytesContent):
    """Raises once it is read at or beyond ``fail_at``."""

    def __init__(self, data: bytes, fail_at: int) -> None:
        super().__init__(data)
        self.fail_at = fail_at

    def pread(self, count: int, offset: int) -> bytes:
        if offset >= self.fail_at:
            raise IntegrityError("The captured file was replaced", where="somewhere")
        return super().pread(count, offset)


class StoreSuite:
    """Give it ``make_store``; each store it makes must see only its own objects."""

    #: The server under test breaks off an answer whose object is replaced meanwhile; the store must notice.
    server_breaks_off = False
    #: Whether the server answers a read with an object's old size and its new content while it is replaced.
    server_mixes = False

    def make_store(self) -> Store:
        raise NotImplementedError

    async def leftovers(self, store: Store) -> list[Any]:
        """What failed or cancelled calls left behind, in whatever form the store has."""
        raise NotImplementedError

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        store = self.make_store()
        try:
            yield store
        finally:
            await store.aclose()

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("as_file", [True, False], ids=["file", "stream"])
    def test_what_is_put_is_what_is_got(self, tmp_path: Path, size: int, as_file: bool) -> None:
        data = pattern(size)
        (tmp_path / "source").write_bytes(data)
        source: Content = CapturedFile(str(tmp_path / "source"), size) if as_file else BytesContent(data)
        target = tmp_path / "target"

        async def check() -> None:
            async with self.store() as store:
                sent: list[int] = []
                crcs = (await store.put_content("a/b/c.bin", source, sent.append)).crc32
                assert crcs == crcs_of(data)
                assert sum(sent) == size
                got: list[int] = []
                assert (
                    await store.get_file("a/b/c.bin", str(target), size=size, crc32=crcs, progress=got.append) == size
                )
                assert sum(got) == size
                assert target.read_bytes() == data
                assert await store.size("a/b/c.bin") == size
                assert await store.get_file("a/b/c.bin", str(target)) == size
                assert target.read_bytes() == data

        run(check)

    def test_a_pace_holds_until_it_is_lifted_which_counts_at_once(self) -> None:
        data, began = BytesContent(pattern(LARGE)), anyio.Event()

        async def check() -> None:
            async with self.store() as store:
                assert store.pace(1)  # Whoever keeps it needs ten days.
                async with anyio.create_task_group() as group:

                    async def put() -> None:
                        stored = await store.put_content("a/b", data, lambda count: began.set())
                        assert stored.crc32 == crcs_of(pattern(LARGE))

                    group.start_soon(put)
                    await began.wait()
                    await store.put_bytes("a/metadata", b"is not held back")
                    with pytest.raises(NotFound):
                        await store.size("a/b")
                    assert store.pace(0)
                assert await store.size("a/b") == LARGE

        run(check)

    def test_who_is_cancelled_at_a_low_pace_leaves_nothing(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                store.pace(1)
                with anyio.CancelScope() as scope:
                    await store.put_content("a/b", BytesContent(pattern(LARGE)), lambda count: scope.cancel())
                assert scope.cancelled_caught
                with pytest.raises(NotFound):
                    await store.size("a/b")
                assert await self.leftovers(store) == []

        run(check)

    @pytest.mark.parametrize("data", [b"", b"x", pattern(100_000)], ids=len)
    def test_small_objects_come_back_whole(self, data: bytes) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("meta/one.json", data)
                assert await store.get_bytes("meta/one.json") == data

        run(check)

    def test_many_small_objects_are_read_together_and_what_is_missing_is_left_out(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                written = {f"meta/{number}": f"{number}".encode() for number in range(12)}
                for key, data in written.items():
                    await store.put_bytes(key, data)
                assert await store.get_each([*written, "meta/none", "none/at/all", "meta"], 4) == written
                assert await store.get_each([], 4) == {}
                with pytest.raises(UsageError):
                    await store.get_each(["meta/0", "../meta/1"], 4)

        run(check)

    def test_a_put_replaces_what_was_there(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/latest", b"a long first value")
                await store.put_bytes("a/latest", b"second")
                assert await store.get_bytes("a/latest") == b"second"
                await store.put_content("a/latest", BytesContent(b"third"))
                await store.put_content("a/latest", BytesContent(b"third"))
                assert await store.get_bytes("a/latest") == b"third"

        run(check)

    def test_readers_never_see_half_an_object(self) -> None:
        if self.server_mixes:
            pytest.skip("this server itself hands out an object that is being replaced, to any client")
        values = [bytes([number]) * (200_000 + number) for number in range(4)]

        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/key", values[0])

                async def write() -> None:
                    for number in range(12):
                        await store.put_content("a/key", BytesContent(values[number % 4]))
                    group.cancel_scope.cancel()

                async def read() -> None:
                    while True:
                        try:
                            value = await store.get_bytes("a/key")
                        except TransientStoreError:
                            assert self.server_breaks_off
                        else:
                            assert value in values

                async with anyio.create_task_group() as group:
                    group.start_soon(write)
                    group.start_soon(read)

        run(check)

    @pytest.mark.parametrize("method", ["get_bytes", "size", "get_file"])
    def test_a_missing_object_is_not_found(self, tmp_path: Path, method: str) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/there", b"1")
                arguments = [str(tmp_path / "target")] if method == "get_file" else []
                for key in ("a/missing", "missing", "b/c/missing"):
                    with pytest.raises(NotFound) as caught:
                        await getattr(store, method)(key, *arguments)
                    assert key in str(caught.value)

        run(check)

    def test_delete_removes_one_object_and_a_missing_one_is_no_error(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/b/one", b"1")
                await store.put_bytes("a/b/two", b"2")
                await store.delete("a/b/one")
                await store.delete("a/b/one")
                await store.delete("never/was")
                assert [entry async for entry in store.list("a")] == [ListedObject("a/b/two", 1)]
                (written,) = [entry.modified async for entry in store.list("a")]
                assert written is not None
                assert abs(written - time.time()) < 3600
                await store.delete("a/b/two")
                assert [entry async for entry in store.list("a")] == []
                await store.put_bytes("a/b/two", b"again")
                assert await store.get_bytes("a/b/two") == b"again"

        run(check)

    def test_list_is_recursive_and_keeps_to_the_folder(self) -> None:
        keys = ["a/b/one", "a/b/c/two", "a/b/c/d/three", "a/bc/four", "a/b.txt", "e/five"]

        async def check() -> None:
            async with self.store() as store:
                for key in keys:
                    await store.put_bytes(key, key.encode())
                found = {entry async for entry in store.list("a/b")}
                assert found == {ListedObject(key, len(key)) for key in keys[:3]}
                assert [entry async for entry in store.list("nothing/here")] == []
                assert [entry async for entry in store.list("e/five")] == []

        run(check)

    def test_list_goes_past_the_first_page(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                keys = {f"many/{number:05d}" for number in range(1_050)}
                for key in keys:
                    await store.put_bytes(key, b"x")
                found = [entry.key async for entry in store.list("many")]
                assert len(found) == len(keys)
                assert set(found) == keys

        run(check)

    @pytest.mark.parametrize(
        "key", ["a/with space", "a/plus+percent%25", "a/ünïcode-文字", "a/q?x=1&y=2#z", "a/-=,;:@~"]
    )
    def test_any_plain_name_is_a_key(self, key: str) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes(key, b"1")
                await store.put_content(key + ".2", BytesContent(b"22"))
                assert await store.get_bytes(key) == b"1"
                assert {entry async for entry in store.list("a")} == {ListedObject(key, 1), ListedObject(key + ".2", 2)}
                await store.delete(key)
                assert {entry.key async for entry in store.list("a")} == {key + ".2"}

        run(check)

    @pytest.mark.parametrize("key", DAMAGED_KEYS)
    def test_a_key_that_is_no_path_is_refused(self, key: str) -> None:
        async def check() -> None:
            async with self.store() as store:
                with pytest.raises(UsageError):
                    await store.put_bytes(key, b"1")
                with pytest.raises(UsageError):
                    await store.get_bytes(key)
                with pytest.raises(UsageError):
                    await store.delete(key)
                with pytest.raises(UsageError):
                    [entry async for entry in store.list(key)]

        run(check)

    @pytest.mark.parametrize("size", [1_000, LARGE])
    def test_damage_is_noticed_while_reading(self, tmp_path: Path, size: int) -> None:
        data = pattern(size)
        target = str(tmp_path / "target")

        async def check() -> None:
            async with self.store() as store:
                crcs = (await store.put_content("a/key", BytesContent(data))).crc32
                wrong = [*crcs[:-1], crcs[-1] ^ 1]
                with pytest.raises(IntegrityError, match="a/key"):
                    await store.get_file("a/key", target, size=size, crc32=wrong)
                with pytest.raises(IntegrityError, match="a/key"):
                    await store.get_file("a/key", target, size=size + 1, crc32=crcs)
                with pytest.raises(IntegrityError, match="a/key"):
                    await store.get_file("a/key", target, crc32=[*crcs, 0])

        run(check)

    def test_an_object_that_should_be_empty_and_is_not_is_damaged(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/key", b"x")
                with pytest.raises(IntegrityError):
                    await store.get_file("a/key", str(tmp_path / "target"), size=0, crc32=[])

        run(check)

    def test_a_destination_that_cannot_be_written_is_an_error_of_ours(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/key", b"x")
                with pytest.raises(StoreError) as caught:
                    await store.get_file("a/key", str(tmp_path / "missing" / "target"))
                assert str(tmp_path / "missing" / "target") in str(caught.value)

        run(check)

    def test_a_get_never_shares_the_inode_with_the_store(self, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(b"first")

        async def check() -> None:
            async with self.store() as store:
                await store.put_content("a/key", CapturedFile(str(source), 5))
                await store.get_file("a/key", str(target))
                with open(target, "r+b") as file:
                    file.write(b"XXXXX")
                with open(source, "r+b") as file:
                    file.write(b"YYYYY")
                assert await store.get_bytes("a/key") == b"first"

        run(check)

    @pytest.mark.parametrize("size", [0, 1_000, LARGE])
    def test_a_copy_is_an_object_of_its_own(self, tmp_path: Path, size: int) -> None:
        data = pattern(size)

        async def check() -> None:
            async with self.copying_store() as store:
                crcs = (await store.put_content("a/one", BytesContent(data))).crc32
                await store.put_bytes("b/two", b"replaced")
                for _ in range(2):
                    await store.copy("a/one", "b/two", size)
                assert {entry async for entry in store.list("b")} == {ListedObject("b/two", size)}
                await store.copy("b/two", "c/d/three", size)
                await store.delete("a/one")
                await store.put_bytes("b/two", b"something else")
                assert await store.get_file("c/d/three", str(tmp_path / "t"), size=size, crc32=crcs) == size
                assert (tmp_path / "t").read_bytes() == data
                assert await store.get_bytes("b/two") == b"something else"

        run(check)

    def test_a_copy_onto_itself_changes_nothing(self) -> None:
        async def check() -> None:
            async with self.copying_store() as store:
                await store.put_bytes("a/key", b"content")
                await store.copy("a/key", "a/key", 7)
                assert await store.get_bytes("a/key") == b"content"
                assert [entry async for entry in store.list("a")] == [ListedObject("a/key", 7)]

        run(check)

    def test_a_copy_of_what_is_missing_or_of_another_size_is_refused(self) -> None:
        async def check() -> None:
            async with self.copying_store() as store:
                await store.put_bytes("a/key", b"content")
                before = len(await self.leftovers(store))
                with pytest.raises(NotFound, match="a/missing"):
                    await store.copy("a/missing", "b/key", 7)
                for size in (0, 6, 8):
                    with pytest.raises(IntegrityError, match="a/key"):
                        await store.copy("a/key", "b/key", size)
                assert await self.nothing_under(store, "b/key", others=before)

        run(check)

    def test_copies_run_side_by_side(self) -> None:
        async def check() -> None:
            async with self.copying_store() as plain:
                # As the agent has it: where several make one object, rclone's server has a 500 now and then.
                store = RetryStore(plain, Config(store_attempts=5))
                await store.put_bytes("a/key", b"content")
                async with anyio.create_task_group() as group:
                    for number in range(16):
                        group.start_soon(store.copy, "a/key", f"b/{number % 4}", 7)
                assert {entry async for entry in store.list("b")} == {
                    ListedObject(f"b/{number}", 7) for number in range(4)
                }
                assert [await store.get_bytes(f"b/{number}") for number in range(4)] == [b"content"] * 4

        run(check)

    @asynccontextmanager
    async def copying_store(self) -> AsyncIterator[Store]:
        async with self.store() as store:
            if not store.capabilities.copy:
                pytest.skip("it cannot copy")
            yield store

    def test_a_write_that_depends_on_what_is_there_is_not_done_where_something_else_is(self) -> None:
        async def check() -> None:
            async with self.conditional_store() as store:
                assert await store.put_if("a/key", b"one", None)
                assert not await store.put_if("a/key", b"two", None)
                content, first = await store.get_tagged("a/key")
                assert content == b"one"
                assert await store.put_if("a/key", b"two", first)
                assert not await store.put_if("a/key", b"three", first)
                content, second = await store.get_tagged("a/key")
                assert content == b"two"
                await store.delete("a/key")
                assert not await store.put_if("a/key", b"three", second)
                with pytest.raises(NotFound):
                    await store.get_tagged("a/key")
                assert await store.put_if("a/key", b"three", None)
                assert [entry async for entry in store.list("a")] == [ListedObject("a/key", 5)]

        run(check)

    #: Whether the server looks and writes in one step, and whether it answers those who lose a race with an error.
    conditions_are_atomic = True
    races_are_errors = False

    def test_of_those_who_count_on_at_once_none_is_lost(self) -> None:
        if not self.conditions_are_atomic:
            pytest.skip("this server lets two in at once")

        async def check() -> None:
            async with self.conditional_store() as store:

                async def count(times: int) -> None:
                    for _ in range(times):
                        while True:
                            try:
                                content, tag = await store.get_tagged("a/number")
                            except NotFound:
                                content, tag = b"0", None  # type: ignore[assignment]
                            try:
                                if await store.put_if("a/number", b"%d" % (int(content) + 1), tag):
                                    break
                            except TransientStoreError:
                                assert self.races_are_errors

                async with anyio.create_task_group() as group:
                    for _ in range(4):
                        group.start_soon(count, 5)
                assert await store.get_bytes("a/number") == b"20"

        run(check)

    @asynccontextmanager
    async def conditional_store(self) -> AsyncIterator[Store]:
        async with self.store() as store:
            await store.put_if("probe", b"it turns out", None)
            if not store.capabilities.conditional_put:
                pytest.skip("it writes in any case")
            yield store

    @pytest.mark.parametrize("fail_at", [0, CHUNK_BYTES + 1])
    def test_a_put_whose_source_fails_leaves_nothing(self, fail_at: int) -> None:
        async def check() -> None:
            async with self.store() as store:
                with pytest.raises(IntegrityError, match="replaced"):
                    await store.put_content("a/key", FailingContent(pattern(LARGE), fail_at))
                assert await self.nothing_under(store, "a/key")

        run(check)

    def test_a_cancelled_put_leaves_nothing(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                with anyio.CancelScope() as scope:
                    await store.put_content("a/key", BytesContent(pattern(LARGE)), lambda count: scope.cancel())
                assert scope.cancelled_caught
                assert await self.nothing_under(store, "a/key")
                assert (await store.put_content("a/key", BytesContent(b"later"))).crc32 == crcs_of(b"later")

        run(check)

    def test_a_cancelled_get_ends_and_the_store_goes_on(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with self.store() as store:
                await store.put_content("a/key", BytesContent(pattern(LARGE)))
                with anyio.CancelScope() as scope:
                    await store.get_file("a/key", str(tmp_path / "target"), progress=lambda count: scope.cancel())
                assert scope.cancelled_caught
                assert await store.get_file("a/key", str(tmp_path / "target")) == LARGE
                assert (tmp_path / "target").read_bytes() == pattern(LARGE)

        run(check)

    def test_many_calls_run_side_by_side(self, tmp_path: Path) -> None:
        data = pattern(CHUNK_BYTES + 5)

        async def check() -> None:
            async with self.store() as store:

                async def there_and_back(number: int) -> None:
                    key = f"side/{number}"
                    crcs = (await store.put_content(key, BytesContent(data))).crc32
                    await store.get_file(key, str(tmp_path / str(number)), size=len(data), crc32=crcs)
                    await store.put_bytes(key + ".meta", b"m")

                async with anyio.create_task_group() as group:
                    for number in range(3):
                        group.start_soon(there_and_back, number)
                assert len([entry async for entry in store.list("side")]) == 6

        run(check)

    def test_aclose_may_be_called_twice_and_before_any_use(self) -> None:
        async def check() -> None:
            store = self.make_store()
            await store.aclose()
            await store.aclose()

        run(check)

    def test_url_names_the_object_below_the_root(self) -> None:
        store = self.make_store()
        assert store.url("a/b") == f"{store.root}/a/b"

    async def nothing_under(self, store: Store, key: str, *, others: int = 0) -> bool:
        with pytest.raises(NotFound):
            await store.get_bytes(key)
        assert [entry async for entry in store.list(os.path.dirname(key))] == []
        assert len(await self.leftovers(store)) == others
        return True
