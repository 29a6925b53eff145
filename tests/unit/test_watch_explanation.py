"""What is said where nothing in a watched directory is a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.watch.explanation import why_nothing


@pytest.mark.parametrize(
    ("pattern", "there", "said"),
    [
        ("*.ckpt", ["epoch=1-val/loss=0.5.ckpt", "epoch=2-val/loss=0.4.ckpt"],
         "epoch=1-val/loss=0.5.ckpt, epoch=2-val/loss=0.4.ckpt would with pattern='**/*.ckpt' (a '/' in a name, as in "
         "'val/loss', makes a folder)"),
        ("run-*/checkpoint-*", ["checkpoint-1/model"], "checkpoint-1 would with pattern='checkpoint-*'"),
        ("checkpoint-*", ["a/checkpoint-1/f", "a/checkpoint-2/f", "a/checkpoint-3/f", "b/checkpoint-1/f"],
         "a/checkpoint-1, a/checkpoint-2, a/checkpoint-3 and 1 more would with pattern='**/checkpoint-*'"),
        ("checkpoint-*", ["tmp-checkpoint-1/f", "checkpoint-1.tmp/f"],
         "checkpoint-1.tmp would, but checkpoint-1.tmp has the name of something unfinished"),
        ("*", [".cache/f"], ".cache would, but .cache is hidden"),
        ("checkpoint-*", ["Checkpoint-1/f"], "Checkpoint-1 would, were it not for capital letters"),
        ("checkpoint-*", ["step_1/model", "log.txt", "events/e/f"], "there is events/, log.txt, step_1/"),
        ("checkpoint-*", [], "it is empty"),
    ],
)  # fmt: skip
def test_it_names_what_is_there_and_what_would_have_to_change(
    tmp_path: Path, pattern: str, there: list[str], said: str
) -> None:
    root = tmp_path / "out"
    root.mkdir()
    for path in there:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")
    assert why_nothing(str(root), pattern).startswith(f"nothing in {root} fits pattern={pattern!r}: {said}")


def test_a_link_is_named_with_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint-last").symlink_to(tmp_path / "real")
    why = why_nothing(str(tmp_path / "out"), "checkpoint-*")
    assert "checkpoint-last would, but is a symbolic link, and links are not followed" in why
    assert f"checkpoint-last leads to {tmp_path}/real: watch that" in why


@pytest.mark.parametrize("pattern", ["**/*.ckpt", "version_*/*.ckpt"])
def test_a_link_to_a_folder_in_which_there_would_be_something_is_named_as_well(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.ckpt").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "version_0").symlink_to(tmp_path / "real")
    why = why_nothing(str(tmp_path / "out"), pattern)
    assert f"version_0 is a symbolic link, and links are not followed. In {tmp_path}/real" in why
    assert "there is 1.ckpt" in why
