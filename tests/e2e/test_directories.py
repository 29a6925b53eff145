"""Directories as people really save them, after a load on another machine: byte for byte, and link for link."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.common.made_once import once
from harness.files import training_directories
from harness.flow_runs.metaflow_env import Workspace
from harness.s3.gated_s3 import GatedS3

#: The first of them may make the peer's environment.
pytestmark = pytest.mark.timeout(400)

_LOAD = """
import json, os, sys
from metaflow import Checkpoint
destination, references = sys.argv[1:]
for reference in json.loads(references):
    Checkpoint().load(reference, os.path.join(destination, reference["name"]))
"""


@dataclass
class Moved:
    """Shapes that were saved and removed. ``loaded``: reader → a folder of folders ``<shape>.<format>``."""

    content: dict[str, dict[str, str]]
    modes_and_times: dict[str, dict[str, list[int]]]
    loaded: dict[str, Path]


@pytest.fixture(scope="module", params=["local", pytest.param("s3", marks=pytest.mark.long)])
def moved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, s3_server: GatedS3, peer_python: str
) -> Moved:
    """All shapes on one store, each saved in both formats by one task, and loaded by ours and by the incumbent."""

    def move(base: Path) -> Moved:
        settings = s3_server.new_bucket() if request.param == "s3" else None
        return _move(base, Workspace(base / "workspace", settings), peer_python)

    return once(tmp_path_factory, f"moved-{request.param}", move)


def _move(base: Path, workspace: Workspace, peer_python: str) -> Moved:
    made = training_directories.make(base / "originals")
    content = {name: training_directories.content(path) for name, path in made.items()}
    details = {name: training_directories.modes_and_times(path) for name, path in made.items()}
    paths = json.dumps({name: str(path) for name, path in made.items()})
    try:
        (start,) = workspace.run_flow("shapes_flow", env={"SHAPES": paths}).tasks()["start"]
        workspace.assert_clean()
    finally:
        workspace.kill_leftovers()
    shutil.rmtree(base / "originals")
    loaded = {}
    for reader, python in (("ours", sys.executable), ("incumbent", peer_python)):
        loaded[reader] = base / reader
        workspace.run_python(_LOAD, str(loaded[reader]), json.dumps(start.artifacts["saved"]), python=python)
    return Moved(content, details, loaded)


@pytest.mark.parametrize("shape", training_directories.SHAPES)
@pytest.mark.parametrize("storage_format", ["files", "tar"])
@pytest.mark.parametrize("reader", ["ours", "incumbent"])
def test_every_file_is_there_whoever_loads_it(moved: Moved, shape: str, storage_format: str, reader: str) -> None:
    assert training_directories.content(moved.loaded[reader] / f"{shape}.{storage_format}") == moved.content[shape]


@pytest.mark.parametrize("shape", training_directories.SHAPES)
@pytest.mark.parametrize("storage_format", ["files", "tar"])
def test_links_within_are_links_again_and_those_that_led_elsewhere_are_what_they_led_to(
    moved: Moved, shape: str, storage_format: str
) -> None:
    _, expected = training_directories.SHAPES[shape]
    assert training_directories.links(moved.loaded["ours"] / f"{shape}.{storage_format}") == expected


@pytest.mark.parametrize("shape", training_directories.SHAPES)
@pytest.mark.parametrize("storage_format", ["files", "tar"])
def test_modes_and_times_are_what_they_were(moved: Moved, shape: str, storage_format: str) -> None:
    found = training_directories.modes_and_times(moved.loaded["ours"] / f"{shape}.{storage_format}")
    assert found == moved.modes_and_times[shape]


def test_the_tables_of_shapes_say_what_they_are_for(tmp_path: Path) -> None:
    """What the snapshot and the adapter link to lies elsewhere, and what was made is old."""
    made = training_directories.make(tmp_path)
    assert {
        name: sorted(training_directories.links(path)) for name, path in made.items() if name in ("hf-snapshot", "lora")
    } == {
        "hf-snapshot": ["config.json", "model.safetensors", "onnx/model.onnx"],
        "lora": ["again", "base", "tokenizer.json", "vocabulary.txt"],
    }
    assert all(training_directories.content(path) for path in made.values())
    times = [moment for path in made.values() for _, moment in training_directories.modes_and_times(path).values()]
    assert max(times) < 1_700_000_000


@pytest.mark.parametrize("kept", [False, True], ids=["refused", "kept"])
def test_a_link_that_leads_nowhere_is_refused_by_name_unless_it_is_to_be_kept(
    local: Workspace, tmp_path: Path, kept: bool
) -> None:
    made = training_directories.lightning(tmp_path)
    (made / "gone.ckpt").symlink_to("/nowhere/at all")
    options = json.dumps({"dangling_links": "keep"} if kept else {})
    run = local.run_flow("shapes_flow", succeeds=kept, env={"SHAPES": json.dumps({"x": str(made)}), "OPTIONS": options})
    if not kept:
        assert "gone.ckpt" in run.output
        assert "dangling_links" in run.output, "the way out"
        return
    (start,) = run.tasks()["start"]
    shutil.rmtree(made)
    links = {"last.ckpt": "epoch=3-step=30.ckpt", "gone.ckpt": "/nowhere/at all"}
    for keep in (True, False):
        loaded = tmp_path / f"loaded-{keep}"
        env = {"METAFLOW_ASYNC_CKPT_DANGLING_LINKS": "keep" if keep else "refuse"}
        local.run_python(_LOAD, str(loaded), json.dumps(start.artifacts["saved"]), env=env)
        for name in ("x.files", "x.tar"):
            assert training_directories.links(loaded / name) == links
        # It leads out of what is loaded: whoever writes through it must have wanted that.
        links.pop("gone.ckpt", None)
