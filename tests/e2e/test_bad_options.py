"""Mistakes in the decorator's options are told when the flow starts, before any task has run."""

from __future__ import annotations

import json

import pytest

from harness.flow_runs.metaflow_env import Workspace
from tests.spread import first_of

#: Each costs a flow. The first is always tried.
WRONG: list[tuple[dict[str, object], list[str]]] = [
    ({"load_policy": "frehs"}, ["load_policy='frehs'", "fresh, eager, none"]),
    ({"uploader": "fork"}, ["uploader='fork'", "process, thread"]),
    ({"snapshot": "hardlinks"}, ["'hardlinks'", "auto, hardlink, reflink, copy"]),
    ({"snapshot": "move"}, ["snapshot='move'", "save() and then shutil.rmtree() does the same and loses nothing"]),
    ({"snapshot": "hardlink", "uploader": "thread"}, ["hardlink", "uploader='process'"]),
    ({"storage_format": "zip"}, ["storage_format='zip'", "files, tar"]),
    ({"show_card": "maybe"}, ["show_card='maybe'", "True or False"]),
    ({"flush_timeout": -1}, ["flush_timeout=-1", "a number of seconds"]),
    ({"on_failure": "ignore"}, ["on_failure='ignore'", "raise, warn"]),
    ({"max_exposure": "yesterday"}, ["max_exposure='yesterday'", "a number of seconds, a timedelta, or a text"]),
    ({"max_pending": "few"}, ["max_pending='few'", "a number of checkpoints"]),
]


@pytest.mark.parametrize("case", first_of(WRONG), ids=lambda case: "-".join(case[0]))
def test_a_wrong_option_refuses_the_flow_before_any_task(
    local: Workspace, case: tuple[dict[str, object], list[str]]
) -> None:
    options, says = case
    run = local.run_flow("save_flow", succeeds=False, env={"CKPT_OPTIONS": json.dumps(options)})
    assert "Step start:" in run.output
    for text in says:
        assert text in run.output
    assert "Traceback" not in run.output
    assert "Task is starting" not in run.output
    assert not list(local.store.rglob("start")), "Something of the step was registered"


def test_a_wrong_setting_in_the_environment_refuses_the_flow_and_names_the_variable(local: Workspace) -> None:
    run = local.run_flow("save_flow", succeeds=False, env={"METAFLOW_ASYNC_CKPT_MAX_UPLOADS": "two"})
    assert "METAFLOW_ASYNC_CKPT_MAX_UPLOADS='two'" in run.output
    assert "Task is starting" not in run.output
