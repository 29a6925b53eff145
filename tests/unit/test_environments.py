"""Environments that want different packages never share a directory: who made the second one would remove the first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.flow_runs import environments, frameworks, peer, pods, with_peer


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What venv and pip were told to do; they make what of an environment is looked at, in no time."""
    told: list[list[str]] = []

    def run(command: Sequence[str], **options: Any) -> None:
        told.append(list(command))
        if "venv" in command:
            Path(command[-1], "bin").mkdir(parents=True)
            Path(command[-1], "bin", "python").touch()
            Path(command[-1], "lib", "python3", "site-packages").mkdir(parents=True)

    monkeypatch.setattr(environments, "REPOSITORY", tmp_path)
    monkeypatch.setattr(environments.subprocess, "run", run)
    monkeypatch.setattr(environments, "_copy_pip", lambda target: None)
    for name in ("ASYNC_CKPT_PEER_VENV", "ASYNC_CKPT_FRAMEWORKS_VENV"):
        monkeypatch.delenv(name, raising=False)
    return told


def test_all_that_the_suite_makes_have_directories_of_their_own_and_stay(tmp_path: Path, made: list[list[str]]) -> None:
    def all_of_them() -> list[Path]:
        pythons = [peer.find_or_make_peer(), with_peer.find_or_make_both()]
        pythons += [frameworks.find_or_make_frameworks(), frameworks.find_or_make_incumbent()]
        pythons += [frameworks.find_or_make_both()]
        return [*(Path(python).parents[1] for python in pythons), *map(pods.image, pods.IMAGES)]

    directories = all_of_them()
    assert len(set(directories)) == len(directories) == 8
    count = len(made)
    assert all_of_them() == directories
    assert len(made) == count, "What is there is found again"
    assert all((directory / "complete").exists() for directory in directories)
    wanted = {directory: (directory / "complete").read_text() for directory in tmp_path.glob(".venv-*/")}
    assert len(set(wanted.values())) == len(wanted) == 8


def test_under_one_name_what_differs_in_anything_is_made_apart_and_removes_nothing(made: list[list[str]]) -> None:
    lender = environments.find_or_make("lender", ("c",))
    installs = [((),), (("a",),), (("b",),), (("a", "b"),), (("a",), ("b",)), (("b",), ("a",))]
    kinds = list(itertools.product(installs, (None, lender)))
    first = [environments.find_or_make("one", *each, lender=lent) for each, lent in kinds]
    assert len(set(first)) == len(kinds)
    assert [environments.find_or_make("one", *each, lender=lent) for each, lent in kinds] == first
    assert all((directory / "complete").exists() for directory in first)


def test_one_that_was_cut_off_is_made_anew(made: list[list[str]]) -> None:
    directory = environments.find_or_make("one", ("a",))
    (directory / "complete").unlink()
    (directory / "half").touch()
    assert environments.find_or_make("one", ("a",)) == directory
    assert not (directory / "half").exists()
    assert sum("venv" in command for command in made) == 2
