"""The tables of docs/compatibility.md and the tests of idioms name each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "compatibility.md"
FILES = [*sorted((REPOSITORY / "tests" / "e2e").glob("test_idioms_*.py")), REPOSITORY / "tests/e2e/test_crossing.py"]
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| idiom |")]


def claims_in(file: Path) -> set[str]:
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


def test_there_are_rows() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_its_cells_and_names_a_test_that_there_is(row: str) -> None:
    idiom, _, theirs, ours, test = row.split("|")[1:-1]
    assert idiom.strip()
    assert theirs.strip()
    assert ours.strip()
    link = re.fullmatch(r' \[test\]\((\S+) "(\w+)"\) ', test)
    assert link is not None, test
    file = PAGE.parent / link[1]
    assert link[2] in claims_in(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_test_of_an_idiom_has_a_row(file: Path) -> None:
    named = {name for row in ROWS for name in re.findall(rf'/{file.name} "(\w+)"\)', row)}
    assert claims_in(file) - named == set()
