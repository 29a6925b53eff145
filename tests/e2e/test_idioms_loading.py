"""What people load and list: rows of docs/compatibility.md, each in metaflow-checkpoint's environment and in ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.flow_runs.idiom_runs import Sides, assert_same_but
from harness.flow_runs.metaflow_env import Workspace
from harness.s3.gated_s3 import GatedS3

#: The first of them may make the peer's environment.
pytestmark = pytest.mark.timeout(400)

OK, FAILED = "ok", "failed"


@pytest.mark.long
def test_the_counter_of_metaflows_documentation(sides: Sides) -> None:
    """Fails twice and is retried; then another flow, and a notebook, read its checkpoints."""
    seen = sides.run("counter_flow")
    assert_same_but(seen)
    assert seen[1]["counter"] == [[0, False, 0], [1, True, 2], [2, True, 6]]
    seen = sides.run("policy_flow")
    assert_same_but(seen)
    assert seen[1]["by the artifact"] == [[10, ["counter"]]]
    seen = sides.script("notebook")
    assert_same_but(seen)
    assert [[entry["attempt"] for entry in found] for found in seen[1]["of an attempt"]] == [[0], [1, 1], [2, 2]]


@pytest.mark.long
# metaflow-checkpoint starts a process for most requests to S3.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workspace", ["s3"], indirect=True)
def test_counter_on_s3(workspace: Workspace, gate: GatedS3, peer_python: str, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "ours", gate.new_bucket())
    sides = Sides.of(peer_python, workspace, other)
    assert_same_but(sides.run("counter_flow"))
    assert_same_but(sides.script("notebook"))
    other.kill_leftovers()


@pytest.mark.long
def test_eager_and_resume(sides: Sides) -> None:
    """With ``load_policy="eager"`` a run that failed is resumed, and a later run has nothing left to do."""
    eager = {"LOAD_POLICY": "eager", "RETRIES": "0"}
    first = sides.run("counter_flow", env=eager, succeeds=False)
    resumed = sides.run("counter_flow", "resume", "flaky_count", env=eager)
    again = sides.run("counter_flow", env=eager, succeeds=False)
    for seen, expected in ((first, [0, False, 0]), (resumed, [0, True, 2]), (again, [0, True, 10])):
        assert_same_but(seen)
        assert seen[1]["counter"] == [expected]


def test_ways_to_load(sides: Sides) -> None:
    assert_same_but(
        sides.run("loads_flow"),
        {
            # ``path = current.checkpoint.load(reference); if path: ...`` is never true there.
            "what load returns": (False, True),
            # On a local datastore they are links there, which are not made where there is a file.
            "load over files of the same names": ([FAILED], [OK]),
        },
    )


@pytest.mark.long
def test_policy_none(sides: Sides) -> None:
    """``load_policy=None`` loads nothing, says Metaflow's documentation; metaflow-checkpoint takes it for "fresh"."""
    nothing = [0, False, {}]
    assert_same_but(
        sides.run("nopolicy_flow"),
        {"found": ([nothing, [1, True, {"state": "attempt 0"}]], [nothing, [1, False, {}]])},
    )


@pytest.mark.long
def test_lists(sides: Sides) -> None:
    seen = sides.run("listing_flow")
    entries = [[0, "epoch", 2], [0, "best", 1], [0, "epoch", 0]]
    assert_same_but(
        seen,
        {
            # After a retry the first of the list is of the last attempt here.
            "newest first": ([0, "epoch", 2], [1, "epoch", 2]),
            # There, an attempt can be named together with a Task alone.
            "of a pathspec, attempt=0": (FAILED, entries),
            "of a pathspec, attempt='0'": (FAILED, entries),
        },
    )
    assert seen[1]["of a Task's attempt"] == [entries]


@pytest.mark.long
def test_a_task_that_was_killed_is_read_from_outside(sides: Sides) -> None:
    pathspecs = [side.run("killed_flow", succeeds=False)[0]["pathspec"][0] for side in (sides.theirs, sides.ours)]
    seen = sides.theirs.script("monitor", pathspecs[0]), sides.ours.script("monitor", pathspecs[1])
    assert_same_but(seen)
    assert seen[1]["loaded"] == [{"state": "1"}, {"state": "0"}]


@pytest.mark.long
def test_scopes_and_caches(sides: Sides) -> None:
    """What a first attempt finds of earlier runs: by the user's namespace, and by a tag; and what it lists of them."""

    def run(number: int, *arguments: str) -> tuple[object, object]:
        seen = sides.run("scope_flow", "run", "--number", str(number), *arguments)
        (found,), (cached,) = seen[1]["found"], seen[1]["cached"]
        # As metaflow-checkpoint's guide and its early examples have it.
        assert_same_but(seen, {"within_task=False": ("TypeError", cached)})
        return found[2] and found[2]["number"], cached

    assert run(1) == (None, [])
    assert run(2) == (1, [1])
    assert run(3, "--tag", "checkpoint:shared") == (None, [])

    # Of another user: nothing; and by the tag, a run that may not see the one whose checkpoint it loads fails there.
    colleague = {"USER": "colleague"}
    seen = sides.run("scope_flow", env=colleague)
    assert_same_but(seen, {"within_task=False": ("TypeError", [])})
    assert seen[1]["found"] == [[False, {}, None]]
    tag = ("run", "--tag", "checkpoint:shared")
    theirs, failed = sides.theirs.run("scope_flow", *tag, env=colleague, succeeds=False)
    assert theirs == {}
    assert "Object not in namespace 'user:colleague'" in failed.output
    ours, _ = sides.ours.run("scope_flow", *tag, env=colleague)
    assert ours["found"] == [[True, {"state": "run 3", "more": "of it"}, {"number": 3}]]


@pytest.mark.long
def test_decorators_foreach_and_directory(sides: Sides) -> None:
    """Beside @retry, @timeout, @catch and @card, in a foreach, and with ``temp_dir_root``."""
    # Where a person has set no place for spools, as the tests do.
    seen = sides.run("decorated_flow", env={"METAFLOW_ASYNC_CKPT_SPOOL_DIR": ""})
    relative, absolute = [True, False], [True, True]
    assert_same_but(
        seen,
        {
            "temp_dir_root Qwen/a": (relative, absolute),
            "temp_dir_root Qwen/b": ([relative, relative], [absolute, absolute]),
        },
    )
    assert seen[1]["resumed Qwen/b"] == [[0, False, {}], [1, True, {"state": "Qwen/b of attempt 0"}]]
    assert seen[1]["after a timeout"] == [[0, {}], [1, {"state": "saved in time"}]]


@pytest.mark.long
def test_gang(sides: Sides) -> None:
    theirs, ours = sides.run("gang_flow")
    # A node that starts late loads there what the control node has just saved; here all begin with the same.
    assert ours.pop("node 1") == [[0, False, {}], [1, True, {"model": "attempt 0"}]]
    assert len(theirs.pop("node 1")) == 2
    assert_same_but((theirs, ours))


@pytest.mark.long
def test_with_checkpoint_on_the_command_line(sides: Sides) -> None:
    command = ("run", "--with", "checkpoint:load_policy=eager")
    _, run = sides.theirs.run("bare_flow", *command, succeeds=False)
    assert "`show_card` must be a boolean" in run.output
    for found in ([False, {}], [True, {"state": "saved"}]):
        assert sides.ours.run("bare_flow", *command)[0] == {"found": [found]}


@pytest.mark.long
def test_model_and_load_model(with_both: Sides) -> None:
    """Decorators and functions of metaflow-checkpoint, which is installed beside ours, take our references."""
    seen = with_both.run("model_flow")
    assert_same_but(seen)
    assert seen[1]["just listed"] == [[[OK, None], {"state": "fresh"}]]
    seen = with_both.script("gallery")
    assert_same_but(seen)
    assert len(seen[1]["load_model(entry)"]) == 2


@pytest.mark.long
def test_artifact_store(with_both: Sides) -> None:
    for side in (with_both.theirs, with_both.ours):
        side.workspace.env["ARTIFACTS"] = str(side.workspace.root / "artifacts")
    assert_same_but(with_both.run("artifact_store_flow"))
    seen = with_both.script("artifact_store")
    assert_same_but(seen)
    assert seen[1]["loaded"] == [{"my_file.txt": "Hello, World!"}]
    for side in (with_both.theirs, with_both.ours):
        keys = [str(path) for path in side.workspace.root.rglob("my_file.txt") if "checkpoints/artifacts" in str(path)]
        assert keys
        assert all(key.startswith(side.workspace.env["ARTIFACTS"]) for key in keys)
