"""A workflow engine runs a task again under the same attempt number, on another machine: Metaflow's own tasks."""

from __future__ import annotations

import pytest

from async_ckpt.layout import START_STEP
from harness.flow_runs.metaflow_env import Workspace
from harness.flow_runs.same_number import Started, first_run

_LIST = """
import json, sys
from metaflow import Checkpoint

def loaded(reference):
    with Checkpoint() as checkpoint:
        return int(open(checkpoint.load(reference) + "/count").read())

found = Checkpoint().list(task=sys.argv[1], attempt="all")
print(json.dumps([[one["attempt"], one["version_id"], one["metadata"]["count"], loaded(one)] for one in found]))
"""


def test_the_same_attempt_goes_on_from_what_the_other_machine_saved(local: Workspace) -> None:
    run = first_run(local, SAVES=5, DIES_AFTER=3)
    second = Started(local, run, "second", SAVES=3, DIES_AFTER=2)
    assert second.finish() < 0, second.output
    assert second.began_from == 3, second.output
    assert "was begun before, on " in second.output
    third = Started(local, run, "third", SAVES=2, ASKED_FIRST="a subprocess of it")
    assert third.finish() == 0, third.output
    assert third.began_from == 5, third.output
    listed = local.query(_LIST, f"AgainFlow/{run}/start/1")
    assert listed == [
        [0, start * START_STEP + number, count, count]
        for start, number, count in [(2, 1, 7), (2, 0, 6), (1, 1, 5), (1, 0, 4), (0, 2, 3), (0, 1, 2), (0, 0, 1)]
    ]
    retry = Started(local, run, "fourth", attempt=1, SAVES=1)
    assert retry.finish() == 0, retry.output
    assert retry.began_from == 7
    local.assert_clean()


@pytest.mark.long
def test_two_at_once_keep_their_own_on_s3(s3: Workspace) -> None:
    run = first_run(s3, SAVES=1, DIES_AFTER=0)
    both = [Started(s3, run, machine, SAVES=4) for machine in ("left", "right")]
    for started in both:
        assert started.finish() == 0, started.output
    listed = s3.query(_LIST, f"AgainFlow/{run}/start/1")
    saved = [(one["version"], one["count"]) for started in both for one in started.said("SAVED")]
    assert sorted((version, count) for _, version, count, _ in listed) == sorted(saved)
    assert all(count == loaded for _, _, count, loaded in listed)
    assert len({version // START_STEP for version, _ in saved}) == 2
    s3.assert_clean()
