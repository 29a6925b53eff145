"""Worlds to run flows in: a local datastore, or S3 on a real server process with a gate in front of the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.flow_runs.idiom_runs import Sides
from harness.flow_runs.metaflow_env import Workspace
from harness.flow_runs.peer import find_or_make_peer
from harness.flow_runs.with_peer import find_or_make_both
from harness.s3.gated_s3 import GatedS3


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "local")
    yield workspace
    workspace.kill_leftovers()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedS3]:
    with GatedS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def gate(s3_server: GatedS3) -> Iterator[GatedS3]:
    """The server, with its gate open again afterwards."""
    yield s3_server
    s3_server.open_gate()


@pytest.fixture
def s3(tmp_path: Path, gate: GatedS3) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "s3", gate.new_bucket())
    yield workspace
    gate.open_gate()
    workspace.kill_leftovers()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def workspace(request: pytest.FixtureRequest) -> Workspace:
    """The same claim on both stores."""
    found: Workspace = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def peer_python() -> str:
    """The interpreter of an environment with metaflow-checkpoint."""
    return find_or_make_peer()


@pytest.fixture(scope="session")
def both_python() -> str:
    """The interpreter of an environment with this package and metaflow-checkpoint."""
    return find_or_make_both()


@pytest.fixture
def sides(tmp_path: Path, peer_python: str) -> Iterator[Sides]:
    """metaflow-checkpoint's environment and ours, each with a local datastore of its own."""
    theirs, ours = Workspace(tmp_path / "theirs"), Workspace(tmp_path / "ours")
    yield Sides.of(peer_python, theirs, ours)
    theirs.kill_leftovers()
    ours.kill_leftovers()


@pytest.fixture
def with_both(sides: Sides, both_python: str) -> Sides:
    """The same, but metaflow-checkpoint is installed beside ours as well."""
    sides.ours.python = both_python
    return sides
