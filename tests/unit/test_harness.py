"""``tests/`` and ``stress/`` share ``harness/``, and neither imports the other, nor does code that they hand on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from harness.common.made_once import once
from harness.common.process_mark import ProcessMark
from harness.flow_runs.metaflow_env import REPOSITORY
from harness.tasks.task import wait_until

FORBIDDEN = {"harness": ("tests", "stress"), "tests": ("stress",), "stress": ("tests",)}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_neither_tests_nor_stress_nor_what_they_share_imports_the_others(room: str) -> None:
    # As text: some code is given to another interpreter, and no syntax tree of the file shows what that imports.
    importing = re.compile(rf"^\s*(?:from|import)\s+(?:{'|'.join(FORBIDDEN[room])})\b", re.MULTILINE)
    files = sorted(Path(REPOSITORY, room).rglob("*.py"))
    assert files
    assert [str(path) for path in files if importing.search(path.read_text())] == []


def test_the_harness_page_has_a_line_for_each_module_and_no_other() -> None:
    harness = Path(REPOSITORY, "harness")
    page = (harness / "README.md").read_text()
    rooms_told = re.findall(r"^## `(\w+)/`(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    told = [f"{room}/{name}" for room, rows in rooms_told for name in re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)]
    rooms = [path.parent for path in harness.glob("*/__init__.py")]
    there = [f"{room.name}/{path.stem}" for room in rooms for path in room.glob("*.py") if path.stem != "__init__"]
    assert sorted(told) == sorted(there)


def test_what_one_makes_for_all_is_made_once_and_again_where_it_failed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made: list[Path] = []

    def make(place: Path) -> list[str]:
        assert list(place.iterdir()) == []
        (place / "file").touch()
        made.append(place)
        if len(made) == 1:
            raise ValueError("not yet")
        return ["made", str(len(made))]

    name = f"once-{os.getpid()}"
    with pytest.raises(ValueError, match="not yet"):
        once(tmp_path_factory, name, make)
    assert [once(tmp_path_factory, name, make) for _ in range(3)] == [["made", "2"]] * 3
    assert len(made) == 2


def test_a_mark_finds_the_processes_of_its_maker_and_theirs_and_nobody_else_s() -> None:
    mine, others = ProcessMark(), ProcessMark()
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    with subprocess.Popen(
        command, env={**os.environ, **mine.environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert sorted(mine.processes()) == sorted([process.pid, child])
        assert others.processes() == []
        process.kill()
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: not mine.processes(), "the last one is gone as well")
