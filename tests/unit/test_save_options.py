"""The options of ``save()`` are declared in one place, and everybody who hands them on knows all of them."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.capture import STRATEGIES
from async_ckpt.cli.commands import parser
from async_ckpt.errors import UsageError
from async_ckpt.task.options import SaveOptions
from async_ckpt.task.socket_saver import check_fields
from harness.tasks.task import TASK

ROOT = Path(__file__).parents[2]
OPTIONS = {field.name for field in dataclasses.fields(SaveOptions)}


@pytest.mark.parametrize("name", ["Checkpoint", "CurrentCheckpoint"])
def test_both_objects_of_users_take_every_option_and_no_other(name: str) -> None:
    module = ast.parse((ROOT / "metaflow_extensions/async_ckpt/plugins/checkpoint.py").read_text())
    (found,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
    (save,) = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "save"]
    assert {argument.arg for argument in save.args.args} - {"self", "path"} == OPTIONS


def test_the_command_line_takes_every_option_and_no_other() -> None:
    given = vars(parser().parse_args(["save", "somewhere"]))
    names = {"checkpoint": "name", "no_latest": "latest"}
    other = {"path", "name", "json", "spool", "wait", "command", "show"}
    assert {names.get(name, name) for name in given if name not in other} == OPTIONS


def test_the_protocols_page_names_every_option() -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    page = page[page.index("**`save`** does") :]
    assert set(re.findall(r"^\| `(\w+)` \|", page[: page.index("\n\n##")], re.MULTILINE)) >= OPTIONS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "a/b"}, "cannot be the name"),
        ({"storage_format": "zip"}, "storage_format='zip' is unknown. Use one of files, tar"),
        ({"snapshot": "guess"}, f"snapshot='guess' is unknown. Use one of {', '.join(STRATEGIES)}"),
        ({"collective": True, "storage_format": "tar"}, "A collective save has no storage_format='tar'"),
    ],
)
def test_what_is_not_valid_is_refused_with_the_way_out(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        SaveOptions(**options).checked()


def test_the_defaults_are_valid_and_a_number_is_a_name() -> None:
    assert SaveOptions().checked() == SaveOptions()
    assert SaveOptions(name=3).checked().name == "3"  # type: ignore[arg-type]
    assert SaveOptions().name == layout.DEFAULT_NAME


def test_a_rank_is_for_collective_saves_only() -> None:
    assert SaveOptions().ranks(TASK) is None
    assert SaveOptions(collective=True, rank=1, world_size=2).ranks(TASK)[:2] == (1, 2)  # type: ignore[index]
    with pytest.raises(UsageError, match="rank and world_size are for collective saves"):
        SaveOptions(rank=1, world_size=2).ranks(TASK)


@pytest.mark.parametrize(
    ("name", "value"), [("latest", 1), ("rank", True), ("world_size", "2"), ("name", 3), ("collective", None)]
)
def test_the_socket_takes_each_option_in_its_type_alone(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"The field '{name}' of a save is no"):
        check_fields({"path": "/somewhere", name: value})


def test_the_socket_takes_metadata_of_every_type() -> None:
    for metadata in (None, 3, "text", [1], {"a": 1}):
        check_fields({"path": "/somewhere", "metadata": metadata, "rank": 0, "world_size": 1, "latest": False})
