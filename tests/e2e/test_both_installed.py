"""With metaflow-checkpoint 0.2.14 (the peer) installed as well: who serves what, and the peer's own with our saves."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from harness.flow_runs.metaflow_env import FLOWS, REPOSITORY, Workspace
from harness.flow_runs.with_peer import Site, peer_folder
from tests.spread import spread

#: The first of them may make the environments.
pytestmark = pytest.mark.timeout(400)

_ROOM = "metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities"
_WHO = """
import json
from metaflow import Checkpoint, FlowSpec, artifact_store_from, checkpoint, current, load_model, model, step
from metaflow.plugins import STEP_DECORATORS
@step
def start(self): pass
(decorator,) = checkpoint(start).decorators
served = [type(decorator), Checkpoint, model(start).decorators[-1].__class__, load_model, artifact_store_from]
print(json.dumps([thing.__module__ for thing in served]))
"""
_EXPECTED = [
    "metaflow_extensions.async_ckpt.plugins.checkpoint_decorator",
    "metaflow_extensions.async_ckpt.plugins.checkpoint",
    f"{_ROOM}.modeling_utils.decorator",
    f"{_ROOM}.datastructures",
    f"{_ROOM}.datastore.context",
]


_OURS = ("wheel", "editable", "folder b", "folder y")
_PEERS = ("wheel", "wheel named otherwise", "editable", "folder a", "folder z")


@pytest.mark.parametrize(
    ("ours", "peer", "first"),
    [*spread(_OURS, _PEERS, ["peer"]), ("wheel", "wheel", "ours"), ("editable", "editable", "ours")],
)
def test_ours_is_served_however_the_two_are_installed(
    local: Workspace, peer_python: str, tmp_path: Path, ours: str, peer: str, first: str
) -> None:
    site = Site(tmp_path / "site", peer_folder(peer_python))
    # Metaflow compares names letter by letter.
    name = "metaflow_checkpoint" if peer == "wheel named otherwise" else ""
    steps = [lambda: site.lay("ours", ours), lambda: site.lay("peer", peer.removesuffix(" named otherwise"), name)]
    for lay in steps if first == "ours" else reversed(steps):
        lay()
    environment = {"PYTHONPATH": os.pathsep.join(site.path)} if site.path else {}
    assert local.query(_WHO, python=site.python, env=environment) == _EXPECTED


def _both_as_wheels(folder: Path, peer_python: str) -> Site:
    site = Site(folder / "site", peer_folder(peer_python))
    for name in ("ours", "peer"):
        site.lay(name, "wheel")
    return site


_WAITS = """
import json, os
from metaflow import delete_model, load_model
from metaflow_extensions.async_ckpt.plugins import checkpoint
from async_ckpt.config import ENV_SPOOL
class Task:
    waited = []
    @classmethod
    def from_environment(cls):
        return cls()
    def wait_for_key(self, key):
        self.waited.append(key)
        raise InterruptedError
checkpoint.Checkpointer = Task
os.environ[ENV_SPOOL] = "a task's"
def key(number):
    return f"mf.checkpoints/checkpoints/artifacts/F/s/0/0/0.0.n.{number}"
def reference(number):
    return {"url": "u", "key": key(number), "created_on": "2026-01-01T00:00:00", "type": "checkpoint"}
for call in (
    lambda: load_model(reference(0), "x"), lambda: load_model(key(1), "x"),
    lambda: delete_model(reference(2)), lambda: delete_model(key(3)),
):
    try:
        call()
    except InterruptedError:
        pass
print(json.dumps([waited.rpartition(".")[2] for waited in Task.waited]))
"""


def test_what_the_peer_reads_or_deletes_waits_until_it_is_in_the_store(
    local: Workspace, peer_python: str, tmp_path: Path
) -> None:
    site = _both_as_wheels(tmp_path, peer_python)
    assert local.query(_WAITS, python=site.python) == ["0", "1", "2", "3"]


_KEEPS = """
import json, pickle, sys
import metaflow
from async_ckpt.task.reference import LoadedInfo
info = LoadedInfo(url="u", key="k", created_on="2026", type="checkpoint", metadata={"epoch": 3}, version_id=7)
print(json.dumps(pickle.dumps(info).hex()))
"""
_READS = """
import json, pickle
import metaflow
from metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.datastructures import CheckpointArtifact
info = pickle.loads(bytes.fromhex("{}"))
print(json.dumps([type(info) is CheckpointArtifact, info.key, info.metadata["epoch"], info.version_id]))
"""


def test_what_is_kept_of_the_loaded_checkpoint_is_the_peers_own_where_it_is_installed(
    local: Workspace, peer_python: str, tmp_path: Path
) -> None:
    # @model(load="info") takes nothing else that has attributes.
    site = _both_as_wheels(tmp_path, peer_python)
    kept = local.query(_KEEPS, python=site.python)
    assert local.query(_READS.format(kept), python=peer_python) == [True, "k", 3, 7]


def test_ours_is_served_where_one_folder_holds_both(local: Workspace, peer_python: str, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", peer_folder(peer_python))
    site.lay("ours", "one folder")
    site.lay("peer", "one folder")
    (folder,) = site.path
    assert local.query(_WHO, python=site.python, env={"PYTHONPATH": folder}) == _EXPECTED


def test_extensions_that_metaflow_is_told_not_to_load_serve_nothing(
    local: Workspace, peer_python: str, tmp_path: Path
) -> None:
    site = Site(tmp_path / "site", peer_folder(peer_python))
    site.lay("ours", "ours")
    site.lay("peer", "peer")
    asked = "import json; from async_ckpt.task.which import who_serves; print(json.dumps(who_serves()))"
    ours, peer = site.path
    environment = {"PYTHONPATH": os.pathsep.join(site.path)}
    only_ours = local.query(asked, python=site.python, env={**environment, "METAFLOW_EXTENSIONS_SEARCH_DIRS": ours})
    assert only_ours["metaflow-checkpoint"] is None
    assert only_ours["@checkpoint"]["package"] == "metaflow-async-ckpt"
    only_peer = local.query(asked, python=site.python, env={**environment, "METAFLOW_EXTENSIONS_SEARCH_DIRS": peer})
    assert only_peer["@checkpoint"]["package"] == "metaflow-checkpoint"
    assert only_peer["Checkpoint"]["package"] == "metaflow-checkpoint"


def test_ours_is_served_to_a_task_that_runs_from_a_code_package(
    local: Workspace, peer_python: str, tmp_path: Path
) -> None:
    """The package keeps the order of the machine it was made on: here the peer comes last."""
    site, bare = Site(tmp_path / "site", peer_folder(peer_python)), Site(tmp_path / "bare", peer_folder(peer_python))
    site.lay("ours", "wheel")
    site.lay("peer", "peer")
    archive, there = tmp_path / "package.tgz", tmp_path / "there"
    command = [site.python, str(FLOWS / "both_flow.py"), "--no-pylint", "package", "save", str(archive)]
    local.run_command(command, env={"PYTHONPATH": site.path[0]})
    with tarfile.open(archive) as package:
        package.extractall(there, filter="data")
    order = (
        "import json; from metaflow.extension_support import get_modules\n"
        "print(json.dumps([found.tl_package for found in get_modules('toplevel')]))"
    )
    environment = {"PYTHONPATH": str(there / ".mf_code"), "METAFLOW_EXTRACTED_ROOT": str(there)}
    assert local.query(order, python=bare.python, env=environment) == ["async_ckpt", "obcheckpoint"]
    assert local.query(_WHO, python=bare.python, env=environment) == _EXPECTED


@pytest.mark.long
def test_the_peers_model_and_load_model_work_with_our_checkpoints_and_nobody_is_told_to_uninstall(
    workspace: Workspace, both_python: str
) -> None:
    run = workspace.run_flow("both_flow", python=both_python)
    assert "obcheckpoint(0.2.14)" in run.output, "The peer is not there"
    assert "installed as well" not in run.output
    assert "ninstall" not in run.output
    (start,), (end,) = run.tasks()["start"], run.tasks()["end"]
    assert "manifest" in start.artifacts["files"]
    ways = [f"{way}({name})" for name in ("files", "packed", "saved") for way in ("@model", "load_model")]
    assert end.artifacts["seen"] == dict.fromkeys([*ways, "Checkpoint"], "trained")
    workspace.assert_clean()


def test_the_command_line_tells_who_serves(local: Workspace, both_python: str, peer_python: str) -> None:
    command = [str(Path(both_python).with_name("async-ckpt")), "which"]
    text = local.run_command(command).stdout
    assert text.splitlines()[0].split()[:2] == ["@checkpoint", "metaflow-async-ckpt"]
    assert "metaflow-checkpoint 0.2.14" in text
    told = json.loads(local.run_command([*command, "--json"]).stdout)
    for name, file in (("@checkpoint", "checkpoint_decorator"), ("Checkpoint", "checkpoint")):
        assert told[name]["package"] == "metaflow-async-ckpt"
        assert told[name]["file"] == str(REPOSITORY / f"metaflow_extensions/async_ckpt/plugins/{file}.py")
        assert told[name]["version"]
    assert told["metaflow-checkpoint"]["version"] == "0.2.14"
    alone = local.run_command([sys.executable, "-m", "async_ckpt.cli", "which"]).stdout
    assert "metaflow-checkpoint is not here" in alone


@pytest.mark.long
@pytest.mark.parametrize(
    "scope", ["checkpoint", *(pytest.param(s, marks=pytest.mark.long) for s in ("flow", "global"))]
)
def test_what_the_peers_huggingface_hub_keeps_is_loaded_by_reference_and_by_key(
    local: Workspace, both_python: str, scope: str
) -> None:
    hub = str(REPOSITORY / "harness" / "fake_hub")
    run = local.run_flow("hub_flow", python=both_python, env={"PYTHONPATH": hub, "CACHE_SCOPE": scope})
    kept = run.tasks()["start"][0].artifacts["kept"]
    assert kept["key"].startswith("mf.huggingface_hub/checkpoints/artifacts/")
    load = """
import json, sys
from metaflow import Checkpoint
kept, found = json.loads(sys.argv[1]), []
for reference in (kept, kept["key"]):
    with Checkpoint() as loaded:
        loaded.load(reference)
        found.append(json.load(open(f"{loaded.directory}/config.json")))
print(json.dumps(found))
"""
    assert local.query(load, json.dumps(kept)) == [{"repo": "somebody/tiny"}] * 2
