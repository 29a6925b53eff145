"""What differs between two checkpoints, by their manifests."""

from __future__ import annotations

import pytest

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.manifest import FileEntry, Manifest, Symlink
from async_ckpt.task.difference import ADDED, CHANGED, REMOVED, UNKNOWN, Difference, difference


def file(path: str, size: int, crc32: list[int] | None = None, digests: tuple[str, ...] = ()) -> FileEntry:
    return FileEntry(path, size, 0o644, crc32=crc32, digests=digests)


def test_files_come_and_go() -> None:
    old, new = [file("a", 5, [1]), file("b", 3, [2])], [file("b", 3, [2]), file("c", 7, [3])]
    assert difference(Manifest(old), Manifest(new)) == [
        Difference("a", REMOVED, 5), Difference("c", ADDED, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        (file("x", 10, [1]), file("x", 10, [1]), None),
        (file("x", 10, [1]), file("x", 10, [2]), 10),
        (file("x", 10, [1]), file("x", 12, [2]), 12),
        (file("x", CHUNK_BYTES + 5, [1, 2]), file("x", CHUNK_BYTES + 5, [1, 3]), 5),
        (file("x", CHUNK_BYTES + 5, [1, 2]), file("x", CHUNK_BYTES + 9, [1, 3]), 9),
        (file("x", CHUNK_BYTES, [1]), file("x", CHUNK_BYTES + 9, [1, 3]), 9),
        (file("x", 2 * CHUNK_BYTES, [1, 2]), file("x", 5, [3]), 2 * CHUNK_BYTES),
        (file("x", 0, []), file("x", 0, []), None),
        (file("x", 0, []), file("x", 4, [1]), 4),
    ],
)
def test_bytes_are_compared_in_chunks(old: FileEntry, new: FileEntry, differs: int | None) -> None:
    expected = [] if differs is None else [Difference("x", CHANGED, differs)]
    assert difference(Manifest([old]), Manifest([new])) == expected


def test_digests_go_before_checksums_where_both_are_of_one_algorithm() -> None:
    one, other = file("x", 9, [1], ("xxh3:aa",)), file("x", 9, [1], ("xxh3:bb",))
    assert difference(Manifest([one]), Manifest([other])) == [Difference("x", CHANGED, 9)]
    sha = file("x", 9, [1], ("sha256:aa",))
    assert difference(Manifest([one]), Manifest([sha])) == []


def test_what_nothing_tells_of_is_said_to_be_unknown() -> None:
    assert difference(Manifest([file("x", 9)]), Manifest([file("x", 9, [1])])) == [Difference("x", UNKNOWN, None)]
    assert difference(Manifest([file("x", 9)]), Manifest([file("x", 8)])) == [Difference("x", CHANGED, None)]


def test_links() -> None:
    old = Manifest(links=[Symlink("a", "x"), Symlink("b", "x"), Symlink("c", "x")])
    new = Manifest(links=[Symlink("b", "x"), Symlink("c", "y"), Symlink("d", "x")])
    assert difference(old, new) == [Difference("a", REMOVED, 0), Difference("c", CHANGED, 0), Difference("d", ADDED, 0)]
