"""docs/watch.md names the options that there are."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from async_ckpt.cli import main
from async_ckpt.watch import WatchOptions
from harness.flow_runs.metaflow_env import REPOSITORY

PAGE = (REPOSITORY / "docs" / "watch.md").read_text()
OPTIONS = PAGE.partition("\n## Options\n")[2].partition("\n## ")[0]


def test_every_option_has_a_row_and_no_other() -> None:
    rows = [line.split(" | ")[0] for line in OPTIONS.splitlines() if line.startswith("| `")]
    assert sorted(re.findall("`([^`]+)`", "".join(rows))) == sorted(field.name for field in fields(WatchOptions))


def test_every_option_of_the_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["watch", "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--json", "--spool"}
    assert flags == set(re.findall(r"`(--[a-z-]+)`", OPTIONS))
