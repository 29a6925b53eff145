"""``tests/`` and ``stress/`` share ``harness/``, and neither imports the other, nor does code that they hand on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.metaflow_env import REPOSITORY

FORBIDDEN = {"harness": ("tests", "stress"), "tests": ("stress",), "stress": ("tests",)}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_neither_tests_nor_stress_nor_what_they_share_imports_the_others(room: str) -> None:
    # As text: some code is given to another interpreter, and no syntax tree of the file shows what that imports.
    importing = re.compile(rf"^\s*(?:from|import)\s+(?:{'|'.join(FORBIDDEN[room])})\b", re.MULTILINE)
    files = sorted(Path(REPOSITORY, room).rglob("*.py"))
    assert files
    assert [str(path) for path in files if importing.search(path.read_text())] == []
