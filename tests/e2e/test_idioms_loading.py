"""What people load and list: rows of docs/compatibility.md, each in metaflow-checkpoint's environment and in ours."""

from __future__ import annotations

import pytest

from tests.support.idiom_runs import Sides, assert_same_but

#: The first of them may make the peer's environment.
pytestmark = pytest.mark.timeout(400)

OK, FAILED = "ok", "failed"


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


def test_eager_and_resume(sides: Sides) -> None:
    """The counter with ``load_policy="eager"``: a run that failed is resumed, and a later run has nothing left to do."""
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


def test_policy_none(sides: Sides) -> None:
    """``load_policy=None`` loads nothing, says Metaflow's documentation; metaflow-checkpoint takes it for "fresh"."""
    nothing = [0, False, {}]
    assert_same_but(
        sides.run("nopolicy_flow"),
        {"found": ([nothing, [1, True, {"state": "attempt 0"}]], [nothing, [1, False, {}]])},
    )


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


def test_a_task_that_was_killed_is_read_from_outside(sides: Sides) -> None:
    pathspecs = [side.run("killed_flow", succeeds=False)[0]["pathspec"][0] for side in (sides.theirs, sides.ours)]
    seen = sides.theirs.script("monitor", pathspecs[0]), sides.ours.script("monitor", pathspecs[1])
    assert_same_but(seen)
    assert seen[1]["loaded"] == [{"state": "1"}, {"state": "0"}]


def test_scopes(sides: Sides) -> None:
    """What a first attempt finds: by policy, by the user's namespace, and by a tag."""

    def run(number: int, *arguments: str, **env: str) -> dict[str, object]:
        seen = sides.run("scope_flow", "run", "--number", str(number), *arguments, env=env)
        assert_same_but(seen)
        (found,), (cached,), _ = seen[1]["found"], seen[1]["cached"], seen[1]["of this task"]
        return {"found": found[2] and found[2]["number"], "cached": cached}

    assert run(1) == {"found": None, "cached": []}
    assert run(2) == {"found": 1, "cached": [1]}
    assert run(3, LOAD_POLICY="fresh") == {"found": None, "cached": [1, 2]}
    assert run(4, "--tag", "checkpoint:shared") == {"found": None, "cached": []}
    assert run(5, "--tag", "checkpoint:shared") == {"found": 4, "cached": [4]}
    assert run(6, USER="colleague") == {"found": None, "cached": []}


def test_a_tag_that_users_share(sides: Sides) -> None:
    """The second user's run fails there at the start: it may not see the run whose checkpoint it loads."""
    tag = ("run", "--tag", "checkpoint:shared")
    assert_same_but(sides.run("scope_flow", *tag, "--number", "1"))
    colleague = {"USER": "colleague"}
    theirs, run = sides.theirs.run("scope_flow", *tag, env=colleague, succeeds=False)
    assert theirs == {}
    assert "Object not in namespace 'user:colleague'" in run.output
    ours, _ = sides.ours.run("scope_flow", *tag, env=colleague)
    assert ours["found"] == [[True, {"state": "run 1", "more": "of it"}, {"number": 1}]]


def test_within_task(sides: Sides) -> None:
    """``list(within_task=False)``, as metaflow-checkpoint's guide and early examples have it."""
    refused = [FAILED, "TypeError"]
    for count in range(2):
        assert_same_but(sides.run("within_flow"), {"cached": (refused, [OK, count])})


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


def test_gang(sides: Sides) -> None:
    theirs, ours = sides.run("gang_flow")
    # A node that starts late loads there what the control node has just saved; here all begin with the same.
    assert ours.pop("node 1") == [[0, False, {}], [1, True, {"model": "attempt 0"}]]
    assert len(theirs.pop("node 1")) == 2
    assert_same_but((theirs, ours))


def test_with_checkpoint_on_the_command_line(sides: Sides) -> None:
    command = ("run", "--with", "checkpoint:load_policy=eager")
    _, run = sides.theirs.run("bare_flow", *command, succeeds=False)
    assert "`show_card` must be a boolean" in run.output
    for found in ([False, {}], [True, {"state": "saved"}]):
        assert sides.ours.run("bare_flow", *command)[0] == {"found": [found]}


def test_model_and_load_model(with_both: Sides) -> None:
    """Decorators and functions of metaflow-checkpoint, which is installed beside ours, take our references."""
    seen = with_both.run("model_flow")
    assert_same_but(seen)
    assert seen[1]["just listed"] == [[[OK, None], {"state": "fresh"}]]
    seen = with_both.script("gallery")
    assert_same_but(seen)
    assert len(seen[1]["load_model(entry)"]) == 2


