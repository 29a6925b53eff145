"""Over TLS, with whatever is wrong on the way to S3: the flow ends green, and all that it saved can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.flow_runs.over_s3 import QUICK, cases, play
from harness.s3.servers import moto_server, rclone_server

__all__ = ["moto_server", "rclone_server"]

#: Left to ``python -m stress.s3_flows``: a flow without any of it, and other answers of the same kind.
_LEFT_OUT = ("none", "another region: 400", "conditions: 412")
CASES = {name: case for name, case in cases(QUICK).items() if name not in _LEFT_OUT}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_flow_ends_green_at_its_first_attempt_and_all_its_checkpoints_can_be_loaded(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = CASES[name]
    outcome = play(case, QUICK, tmp_path / "flow", request.getfixturevalue(f"{case.server}_server"))
    assert outcome.wrong == [], outcome.output
