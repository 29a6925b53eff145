"""What every store must do with content that an earlier checkpoint has: less to send, and never anything else in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from async_ckpt.config import CHUNK_BYTES, KNOWN_AGAIN_BYTES
from async_ckpt.stores.base import Store
from async_ckpt.upload.earlier import EarlierContent
from harness.common.crc_twins import with_same_crc
from harness.stores.content import BytesContent, crcs_of

from .store_suite import LARGE, run


class Earlier(EarlierContent):
    """Counts what was copied."""

    bytes_copied = 0

    def copied(self, count: int) -> None:
        self.bytes_copied += count


def changed(data: bytes, *offsets: int) -> bytes:
    """The same but for one byte at each offset."""
    made = bytearray(data)
    for offset in offsets:
        made[offset] ^= 1
    return bytes(made)


FIRST = random.Random(7).randbytes(LARGE)

#: Content that comes after ``FIRST``, and how many bytes of it are chunks at the same place, or at another one.
AFTER = {
    "the same": (FIRST, LARGE),
    "one byte in the first chunk": (changed(FIRST, 5), LARGE - CHUNK_BYTES),
    "one byte in the last chunk": (changed(FIRST, LARGE - 1), 2 * CHUNK_BYTES),
    "one byte in each chunk": (changed(FIRST, 1, CHUNK_BYTES, 2 * CHUNK_BYTES), 0),
    "something at the end": (FIRST + b"x", 2 * CHUNK_BYTES),
    "without the end": (FIRST[:-1], 2 * CHUNK_BYTES),
    "shifted by one byte": (b"x" + FIRST[:-1], 0),
    "chunks in another order": (
        FIRST[CHUNK_BYTES : 2 * CHUNK_BYTES] + FIRST[:CHUNK_BYTES] + b"end", 2 * CHUNK_BYTES,
    ),
    "another content": (random.Random(1).randbytes(LARGE), 0),
}  # fmt: skip


class EarlierSuite:
    """Give it the ``store`` of a ``StoreSuite``."""

    #: Whether it copies ranges of objects for the parts of others.
    copies_ranges = True

    def store(self) -> AbstractAsyncContextManager[Store]:
        raise NotImplementedError

    @pytest.mark.parametrize("case", AFTER)
    def test_what_comes_again_is_whole_and_independent_however_little_was_sent(self, tmp_path: Path, case: str) -> None:
        data, known = AFTER[case]
        sent: list[int] = []

        async def check() -> None:
            async with self.store() as store:
                earlier = Earlier()
                earlier.add("a/one", LARGE, await store.put_content("a/one", BytesContent(FIRST)))
                stored = await store.put_content("b/other", BytesContent(data), sent.append, earlier=earlier)
                assert stored.crc32 == crcs_of(data)
                await store.delete("a/one")
                await store.get_file("b/other", str(tmp_path / "t"), size=len(data), crc32=crcs_of(data))
                assert (tmp_path / "t").read_bytes() == data
                if store.capabilities.copy and (self.copies_ranges or known == LARGE):
                    assert earlier.bytes_copied == known if self.copies_ranges else earlier.bytes_copied in (0, known)
                assert earlier.bytes_copied + sum(sent) == len(data)
                # What is known of it serves for the next one.
                earlier.add("b/other", len(data), stored)
                again = await store.put_content("c/third", BytesContent(data), earlier=earlier)
                assert again.crc32 == crcs_of(data)
                assert await store.size("c/third") == len(data)

        run(check)

    @pytest.mark.parametrize("size", [KNOWN_AGAIN_BYTES, 1_000_003, LARGE])
    @pytest.mark.parametrize("fate", ["deleted", "replaced", "longer", "shorter", "written again"])
    def test_a_source_that_is_not_what_it_was_is_no_source(self, tmp_path: Path, size: int, fate: str) -> None:
        data = FIRST[:size]

        async def check() -> None:
            async with self.store() as store:
                earlier = Earlier()
                earlier.add("a/one", size, await store.put_content("a/one", BytesContent(data)))
                # The first copy is where a store is tried out.
                tried = await store.put_content("a/two", BytesContent(data), earlier=earlier)
                assert tried.crc32 == crcs_of(data)
                for key in ("a/one", "a/two"):
                    if fate == "deleted":
                        await store.delete(key)
                    else:
                        other = {"replaced": changed(data, size // 2), "longer": data + b"x", "shorter": data[:-1]}
                        await store.put_content(key, BytesContent(other.get(fate, data)))
                stored = await store.put_content("b/new", BytesContent(data), earlier=earlier)
                assert stored.crc32 == crcs_of(data)
                await store.get_file("b/new", str(tmp_path / "t"), size=size, crc32=crcs_of(data))
                assert (tmp_path / "t").read_bytes() == data

        run(check)

    @pytest.mark.parametrize("size", [1_000_003, LARGE])
    def test_another_content_of_the_same_crcs_is_not_taken_for_it(self, tmp_path: Path, size: int) -> None:
        data = FIRST[:size]
        twin = b"".join(with_same_crc(chunk, random.Random(1)) for chunk in chunks(data))
        assert twin != data
        assert crcs_of(twin) == crcs_of(data)

        async def check() -> None:
            async with self.store() as store:
                earlier = Earlier()
                earlier.add("a/one", size, await store.put_content("a/one", BytesContent(data)))
                await store.put_content("b/twin", BytesContent(twin), earlier=earlier)
                await store.get_file("b/twin", str(tmp_path / "t"), size=size)
                assert (tmp_path / "t").read_bytes() == twin
                assert earlier.bytes_copied == 0

        run(check)


def chunks(data: bytes) -> Iterator[bytes]:
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
