"""A test that is skipped without being on the list fails a run that checks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.flow_runs.environments import with_our_modules
from tests.spread import first_of

_TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="{reason}")
def test_a_folder_that_may_not_be_written_is_an_error_for_good():
    pass
"""
ALLOWED, OTHER = "root may write everywhere", "the moon is full"


def outcome(folder: Path, text: str, *arguments: str, check: str = "1") -> tuple[int, str]:
    (folder / "test_it.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.allowed_skips", *arguments, str(folder)],
        env={**with_our_modules(), "CHECK_SKIPS": check, "PYTEST_ADDOPTS": ""}, cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("arguments", first_of([["-n", "2"], []]))
def test_what_is_not_on_the_list_fails_the_run_and_is_named(tmp_path: Path, arguments: list[str]) -> None:
    assert outcome(tmp_path, _TESTS.format(reason=ALLOWED), *arguments)[0] == 0
    code, said = outcome(tmp_path, _TESTS.format(reason=OTHER), *arguments)
    assert code == 1
    assert said.count(f"is_an_error_for_good: {OTHER}") == 1


def test_a_whole_file_that_is_skipped_fails_the_run(tmp_path: Path) -> None:
    text = f"import pytest\npytest.skip('{OTHER}', allow_module_level=True)\n"
    (tmp_path / "test_more.py").write_text("def test_passes():\n    pass\n")
    code, said = outcome(tmp_path, text)
    assert code == 1
    assert f"test_it.py: {OTHER}" in said


def test_runs_of_people_are_not_checked(tmp_path: Path) -> None:
    assert outcome(tmp_path, _TESTS.format(reason=OTHER), check="")[0] == 0


def test_a_run_that_failed_anyway_stays_so(tmp_path: Path) -> None:
    text = _TESTS.format(reason=OTHER) + "\ndef test_fails():\n    raise ValueError\n"
    code, said = outcome(tmp_path, text)
    assert code == 1
    assert OTHER in said
