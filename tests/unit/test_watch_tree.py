"""What is found in a watched directory, and who writes to it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from async_ckpt.errors import UsageError
from async_ckpt.system.writers import open_for_writing
from async_ckpt.watch.names import Pattern
from async_ckpt.watch.options import WatchOptions
from async_ckpt.watch.tree import read_tree
from harness.files import filesystems

PLACES = (
    "checkpoint-1/checkpoint-2/f", "checkpoint-10/f", "tmp-checkpoint-3/f", "checkpoint-4.tmp/f", "other/f",
    "run-1/checkpoint-5/f", "run-1/a/b/checkpoint-6/f", ".async_ckpt-removed-1/checkpoint-7/f", "epoch=3.ckpt",
    f"async-ckpt-{os.getuid()}/checkpoint-8/f", "checkpoint-9.orbax-tmp-1/f",
)  # fmt: skip


@pytest.fixture
def there(tmp_path: Path) -> Path:
    for place in PLACES:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("x")
    (tmp_path / "checkpoint-link").symlink_to("checkpoint-1")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("checkpoint-*", {"checkpoint-1", "checkpoint-10"}),
        ("*.ckpt", {"epoch=3.ckpt"}),
        ("checkpoint-?", {"checkpoint-1"}),
        ("checkpoint-[2-9]*", set()),
        ("run-*/checkpoint-*", {"run-1/checkpoint-5"}),
        ("**/checkpoint-*", {"checkpoint-1", "checkpoint-10", "run-1/checkpoint-5", "run-1/a/b/checkpoint-6",
                             "other/checkpoint-2"}),
    ],
)  # fmt: skip
def test_the_outermost_matches_are_found_and_neither_links_nor_unfinished_names_nor_our_own(
    there: Path, pattern: str, found: set[str]
) -> None:
    for folder in ("other", "tmp-checkpoint-3"):
        (there / folder / "checkpoint-2").mkdir()
    assert set(Pattern(pattern).find(str(there))) == found


@pytest.mark.parametrize("pattern", ["", "/checkpoint-*", "../checkpoint-*", "a//b", "checkpoint-*/", "**", None])
def test_a_pattern_that_can_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="no pattern of names below the directory"):
        Pattern(pattern)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"settle": -1}, "settle=-1 is not a number of seconds"),
        ({"settle": float("nan")}, "settle=nan"),
        ({"settle": "1"}, "settle='1'"),
        ({"keep": 0}, "keep=0 is not a number of checkpoints"),
        ({"keep": 1, "move": True}, "move and keep exclude each other"),
        ({"done": ""}, "done='' is not the name of a file"),
        ({"metadata_from": 3}, "metadata_from=3 is neither"),
        ({"name": "a/b"}, "'a/b' cannot be the name of a checkpoint"),
        ({"storage_format": "zip"}, "storage_format='zip' is unknown"),
        ({"pattern": "a/../b"}, "no pattern of names"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why.replace("(", r"\(")):
        WatchOptions(**options)  # type: ignore[arg-type]


def test_a_tree_tells_every_change_and_its_identity_is_the_same_for_the_same_files(there: Path) -> None:
    folder = there / "checkpoint-1"
    before = read_tree(str(folder))
    assert set(before) == {"checkpoint-2", "checkpoint-2/f"}
    assert before.size == 1
    assert before.newest_ns == (folder / "checkpoint-2/f").stat().st_mtime_ns
    assert read_tree(str(folder)) == before
    os.link(folder / "checkpoint-2/f", there / "elsewhere")
    assert read_tree(str(folder)) == before, "our own links are no change"
    copy = there / "copy"
    subprocess.run(["cp", "-a", str(folder), str(copy)], check=True)
    assert read_tree(str(copy)) != before
    what = ("/out", "c", "mfchckpt")
    assert read_tree(str(copy)).identity(*what) == before.identity(*what)
    others = [("/out2", "c", "mfchckpt"), ("/out", "d", "mfchckpt"), ("/out", "c", "best")]
    assert len({before.identity(*other) for other in [what, *others]}) == 4
    (folder / "checkpoint-2/f").write_text("yy")
    assert read_tree(str(folder)).identity(*what) != before.identity(*what)
    assert read_tree(str(there / "epoch=3.ckpt")).keys() == {""}
    assert read_tree(str(there / "nothing")) == {}


def test_files_that_are_open_or_mapped_for_writing_are_told_here_and_in_another_process(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("read", "written", "appended", "mapped", "elsewhere", "closed")}
    for path in paths.values():
        path.write_bytes(b"x" * mmap.PAGESIZE)
    trees = {name: read_tree(str(path)).inodes for name, path in paths.items()}
    code = "import sys; file = open(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    with (
        open(paths["read"], "rb"),
        open(paths["written"], "wb"),
        open(paths["appended"], "ab"),
        subprocess.Popen(
            [sys.executable, "-c", code, str(paths["elsewhere"])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
    ):
        with open(paths["mapped"], "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        assert other.stdout is not None
        other.stdout.readline()
        found = open_for_writing(set().union(*trees.values()))
        assert {name for name, files in trees.items() if files <= found.keys()} == {
            "written", "appended", "mapped", "elsewhere",
        }  # fmt: skip
        other.communicate()
        mapped.close()
    assert open_for_writing(set().union(*trees.values())) == {}
    assert open_for_writing(()) == {}


@pytest.mark.parametrize("kind", ["btrfs", "overlay"])
def test_what_is_mapped_for_writing_is_told_where_the_kernel_names_another_device(kind: str, tmp_path: Path) -> None:
    if reason := filesystems.why_not(kind):
        pytest.skip(reason)
    try:
        with filesystems.provided(kind, tmp_path) as folder:
            path = folder / "mapped"
            path.write_bytes(b"x" * mmap.PAGESIZE)
            wanted = read_tree(str(path)).inodes
            with open(path, "r+b") as file:
                mapped = mmap.mmap(file.fileno(), 0)
            assert open_for_writing(wanted).keys() == wanted
            mapped.close()
            assert open_for_writing(wanted) == {}
    except filesystems.CannotMount as error:
        pytest.skip(str(error))
