"""docs/protocol.md: what stands there is what the agent does, and the client in C saves with it."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.agent import socket_saves
from async_ckpt.agent.requests import Requests
from async_ckpt.ipc import protocol, server
from async_ckpt.task import socket_saver
from async_ckpt.task.checkpointer import Checkpointer
from harness.flow_runs.metaflow_env import REPOSITORY
from harness.tasks.protocol_client import Talker
from harness.tasks.repeated_saves import BIG
from harness.tasks.task import Task, content, wait_until

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text()
CLIENT = REPOSITORY / "examples" / "client.c"
#: What the page calls the directory that is saved.
_ON_THE_PAGE = "/scratch/out"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def out(task: Task) -> Path:
    """A directory ``out`` to save, in the working directory of what the page shows."""
    folder = task.work / "out"
    folder.mkdir()
    (folder / "weights").write_bytes(content(0, BIG))
    return folder


def shell(task: Task, checkpointer: Checkpointer, command: str) -> subprocess.CompletedProcess[str]:
    """Run what a user of the step's environment types into a shell."""
    environment = task.environment(checkpointer)
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env=environment, cwd=task.work, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_the_shell_examples_of_the_page_save_and_answer(task: Task, out: Path) -> None:
    checkpointer = task.start()
    command_line, raw = blocks("sh")
    done = shell(task, checkpointer, command_line)
    assert done.returncode == 0, done.stderr
    saved, status = map(json.loads, done.stdout.splitlines())
    assert (saved["name"], saved["metadata"]) == ("best", {"loss": 0.1})
    assert status["failed_count"] == 0
    done = shell(task, checkpointer, raw)
    assert done.returncode == 0, done.stderr
    answer, flushed = map(json.loads, done.stdout.splitlines())
    assert answer["id"] == "0.mfchckpt.1"
    assert flushed["pending"] == 0
    assert task.stored(answer["reference"], "weights").read_bytes() == content(0, BIG)


def talks() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """All questions of the page, each with its answer."""
    for block in blocks("frames"):
        lines = block.splitlines()
        assert [line[0] for line in lines] == ["→", "←"] * (len(lines) // 2)
        for question, answer in zip(lines[::2], lines[1::2], strict=True):
            yield json.loads(question[2:]), json.loads(answer[2:])


def test_the_agent_answers_as_the_page_says(task: Task, out: Path) -> None:
    checkpointer = task.start()
    client = Talker(checkpointer.spool.directory, greet=False)
    ids: dict[str, str] = {}
    for question, shown in talks():
        if "path" in question:
            question["path"] = question["path"].replace(_ON_THE_PAGE, str(out))
        if "id" in question:
            question["id"] = ids.get(question["id"], question["id"])
        client.send(question)
        answer = client.answer(question["seq"])
        # What the agent may add is added at the end.
        assert list(answer)[: len(shown)] == list(shown), question
        assert [type(answer[key]) for key in shown] == [type(value) for value in shown.values()], question
        if "id" in shown:
            ids[shown["id"]] = answer["id"]
            assert shown["reference"].keys() <= answer["reference"].keys()
        else:
            unsure = {"pid"}
            assert {k: answer[k] for k in shown if k not in unsure} == {k: shown[k] for k in shown if k not in unsure}
    assert ids, "the page shows a save"
    client.close()


def operations() -> set[str]:
    """What the agent knows, by its code: its table of operations, and what it compares ``op`` with before that."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Requests.on_message)))
    compared = {
        leaf.value
        for node in ast.walk(tree) if isinstance(node, ast.Compare) and ast.unparse(node.left) == "op"
        for part in node.comparators for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)
    }  # fmt: skip
    return compared | Requests.OPERATIONS.keys()


def test_the_page_has_every_operation_field_push_and_limit() -> None:
    table = PAGE.split("## Operations")[1].split("Times are in seconds")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == operations()
    fields = PAGE.split("**`save`** does")[1].split("Saves over the socket")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", fields, flags=re.MULTILINE)) == {*socket_saver.FIELDS, "timeout_s"}
    agents = "".join(path.read_text() for path in Path(inspect.getfile(Requests)).parent.glob("*.py"))
    assert set(re.findall(r'"push": "([\w ]+)"', PAGE)) == set(re.findall(r'"push": "([\w ]+)"', agents))
    for limit in (
        f"{protocol.MAX_FRAME >> 20} MiB, either way", f"with one frame | {protocol.MAX_FDS} ",
        f"| {server.MAX_CONNECTIONS}; one more is closed", f"| {server.MAX_BACKLOG >> 20} MiB; then",
        f"| {socket_saves.MAX_WAITING}; one more is refused", f"at most {socket_saver.MAX_METADATA >> 10} KiB as JSON",
        f"This page is version {protocol.VERSION}.",
    ):  # fmt: skip
        assert limit in PAGE


def test_the_client_in_c_saves_and_shows_what_is_refused(task: Task, out: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    program = task.base / "client"
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-o", str(program), str(CLIENT)], check=True, timeout=120)
    checkpointer = task.start()
    done = shell(task, checkpointer, f"{program} {out}")
    assert done.returncode == 0, done.stderr
    reference = json.loads(done.stdout)["reference"]
    assert reference["name"] == "from-c"
    checkpointer.flush(60)
    assert task.stored(reference, "weights").read_bytes() == content(0, BIG)

    missing = shell(task, checkpointer, f"{program} {out}/not-there")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "it does not exist" in missing.stderr
    assert shell(task, checkpointer, f"{program}").returncode == 2

    checkpointer.close(clean=True)
    wait_until(lambda: not task.spool_exists(), "the task has ended")
    ended = shell(task, checkpointer, f"{program} {out}")
    assert ended.returncode == 1
    assert "it has ended" in ended.stderr
