"""Fixtures of all tests: file systems, and the promise that no test leaves a process behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_ckpt.system import log
from harness.files import filesystems
from harness.kills import inherited_signals
from harness.tasks.task import Task
from tests.allowed_skips import pytest_sessionfinish, pytest_terminal_summary

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary"]

# What runs in the background of a shell, or under nohup, ignores signals, and so would the flows that get them here.
# The workers of xdist inherit what is set now.
inherited_signals.reset()

# The tests start hundreds of Pythons. Each would compile this package anew if none may leave what it has compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Where two long values differ. pytest looks for the smallest difference: minutes for some megabytes."""
    texts = repr(left), repr(right)
    if op != "==" or sum(map(len, texts)) < 100_000:
        return None
    at = next((index for index, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), 0)
    pieces = [f"{text[max(at - 100, 0) : at + 100]} ..." for text in texts]
    return ["two long values", f"of {len(texts[0])} and {len(texts[1])} characters; they differ from {at} on:", *pieces]


@pytest.fixture(autouse=True)
def _lines_go_to_stderr_again() -> Iterator[None]:
    """What this process says goes elsewhere for as long as one test."""
    yield
    log.write_lines_with(log.to_stderr)
    log.set_level("INFO")


@pytest.fixture(scope="session")
def _provide() -> Iterator[Callable[[str], Path]]:
    """Makes each file system once per session, when the first test asks for it.

    Not below pytest's own directory, which nobody but its owner may enter: some tests become somebody else.
    """
    with tempfile.TemporaryDirectory(prefix="async-ckpt-test-") as base, contextlib.ExitStack() as stack:
        os.chmod(base, 0o711)
        made: dict[str, Path | str] = {}

        def provide(kind: str) -> Path:
            if kind not in made:
                reason = filesystems.why_not(kind)
                try:
                    made[kind] = reason or stack.enter_context(filesystems.provided(kind, Path(base)))
                except filesystems.CannotMount as error:
                    made[kind] = str(error)
            found = made[kind]
            if isinstance(found, str):
                pytest.skip(found)
            return found

        yield provide


@pytest.fixture
def on_filesystem(_provide: Callable[[str], Path]) -> Iterator[Callable[[str], Path]]:
    """``on_filesystem(kind)``: an empty directory of this test's own there; skips where it cannot be had."""
    folders = []

    def get(kind: str) -> Path:
        folders.append(Path(tempfile.mkdtemp(dir=_provide(kind))))
        folders[-1].chmod(0o711)
        return folders[-1]

    yield get
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=filesystems.FILESYSTEMS)
def filesystem(request: pytest.FixtureRequest, on_filesystem: Callable[[str], Path]) -> Path:
    """The same claim on every file system: an empty directory there."""
    return on_filesystem(request.param)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_filesystem: Callable[[str], Path]) -> Iterator[Task]:
    """A task to save in, with a local store. Whatever processes it started must be gone soon after the test.

    It ends before the file systems do that it may have been moved to.
    """
    del on_filesystem
    made = Task(tmp_path, monkeypatch)
    yield made
    left = made.close()
    assert not left, f"processes were left behind: {left}"
