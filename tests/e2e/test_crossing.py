"""Over one datastore: metaflow-checkpoint 0.2.14 lists and loads what we wrote, and we what it wrote."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from harness.flow_runs.idiom_runs import Seen, Side, Sides
from harness.flow_runs.metaflow_env import Workspace
from harness.idioms.cases import CASES, METADATA, content

#: The first of them may make the peer's environment; and it is slow on S3.
pytestmark = pytest.mark.timeout(600)

BEFORE = "before the error"
ATTEMPTS = [[BEFORE], [name for name, _, _ in reversed(CASES)]]


def check_reads(seen: Seen, writer: str, *, by_theirs: bool) -> None:
    """Everything that ``writer`` saved was listed in order, with its metadata, and loaded whole."""
    (listed,) = seen["listed"]
    expected = list(enumerate(CASES))[::-1]
    assert [entry["name"] for entry in listed] == [name for _, (name, _, _) in expected]
    for entry, (number, (name, storage_format, _)) in zip(listed, expected, strict=True):
        assert entry["metadata"] == {**METADATA, "number": number}
        assert (entry["attempt"], entry["version_id"], entry["storage_format"]) == (1, number, storage_format)
        assert entry["key"].endswith(f"/*.1.{name}.{number}")
        assert entry["size"] > 0
    assert seen["_task_checkpoints"] == [listed]
    assert seen["_task_latest_checkpoint"] == [listed[0]]
    assert seen["listed by name"] == [{"mfchckpt": 1, "modèle-日本": 2, "nobody": 0}]
    assert seen["listed by attempt"] == [ATTEMPTS]
    for (number, (name, storage_format, what)), read in zip(expected, seen["read listed"], strict=True):
        whole = content(writer, number)
        files = whole if what == "a directory" else {"state.json": whole["state.json"]}
        # By its key alone, it finds nothing whose name has a dot, not even what it wrote itself.
        by_key = "KeyNotFoundError" if by_theirs and "." in name else files
        assert read == [name, storage_format, files, by_key]
    newest = content(writer, len(CASES) - 1)
    assert seen["latest_checkpoint"] == seen["the latest of the task"] == [newest]


def check_run(seen: Seen, writer: str, other: str | None, *, by_theirs: bool) -> None:
    """A run of ``writer`` began with the newest of ``other``, read all of it, and resumed from its own."""
    if other is None:
        assert seen["eager"] == [[{}, None]]
    else:
        last = len(CASES) - 1
        newest = [content(other, last), [CASES[last][0], {**METADATA, "number": last}]]
        assert seen["eager"] == [newest]
        kinds = sorted([1, name, storage_format] for name, storage_format, _ in CASES)
        assert seen["in the namespace"] == [[[0, BEFORE, "files"], *kinds]]
        check_reads(seen, other, by_theirs=by_theirs)
    assert seen["resumed"] == [[BEFORE, content(writer, "of attempt 0")]]


@pytest.mark.parametrize("workspace", ["local", pytest.param("s3", marks=pytest.mark.long)], indirect=True)
def test_each_side_lists_and_loads_all_that_the_other_saved(workspace: Workspace, peer_python: str) -> None:
    """In a step and outside, by list, key, policy and artifact; both formats, names of all kinds, after a retry.

    On S3, where metaflow-checkpoint starts a process for most requests, each side reads the other's once.
    """
    sides, is_local = Sides.of(peer_python, workspace, workspace), "METAFLOW_S3_ENDPOINT_URL" not in workspace.env
    writers = ("theirs", "ours", *(["theirs again"] if is_local else []))
    other: dict[str, Any] = {}
    pathspec = {}
    for side, writer in zip(itertools.cycle([sides.theirs, sides.ours]), writers):
        seen, run = side.run("crossing_flow", env={"WRITER": writer, **other})
        check_run(seen, writer, {"theirs": None, "ours": "theirs"}.get(writer, "ours"), by_theirs=side is sides.theirs)
        pathspec[writer] = run.tasks()["start"][0].pathspec
        other = {"OTHER": pathspec[writer]}
    readers: list[tuple[Side, str]] = [(sides.theirs, "ours"), (sides.ours, "theirs")]
    readers += [(sides.ours, "ours")] if is_local else []
    for side, writer in readers:
        check_reads(side.script("crossing", pathspec[writer]), writer, by_theirs=side is sides.theirs)
