"""The interface of metaflow-checkpoint 0.2.14 (the peer): all of it is here, and does the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import Workspace

#: The first of them may make the peer's environment.
pytestmark = pytest.mark.timeout(400)

#: Public members of the classes: a list of [parameter, default as text] for a method, None for a property.
_SURFACE = """
import importlib, inspect, json, sys
import metaflow
def described(cls):
    found = {}
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        if name.startswith("_") and name != "__init__":
            continue
        if callable(getattr(cls, name)):
            parameters = list(inspect.signature(getattr(cls, name)).parameters.values())
            found[name] = [[p.name, None if p.default is p.empty else repr(p.default)] for p in parameters]
        else:
            found[name] = None
    return found
classes = {}
for place in sys.argv[1:]:
    module, _, name = place.partition(":")
    classes[name] = getattr(importlib.import_module(module), name)
*interfaces, decorator = classes
exported = sorted(name for name in dir(metaflow) if not name.startswith("_"))
print(json.dumps({
    "classes": [described(classes[name]) for name in interfaces],
    "defaults": classes[decorator].defaults, "exports": exported,
}))
"""
_PEER = "metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities"
PEER = (
    f"{_PEER}.checkpoints.final_api:Checkpoint", f"{_PEER}.checkpoints.decorator:CurrentCheckpointer",
    f"{_PEER}.checkpoints.decorator:CheckpointDecorator",
)  # fmt: skip
_OURS = "metaflow_extensions.async_ckpt.plugins"
OURS = (
    f"{_OURS}.checkpoint:Checkpoint", f"{_OURS}.checkpoint:CurrentCheckpoint",
    f"{_OURS}.checkpoint_decorator:CheckpointDecorator",
)  # fmt: skip

#: These come from metaflow-checkpoint, which can be installed beside this package.
ONLY_THEIRS = {
    "load_model", "delete_model", "artifact_store_from", "model", "huggingface_hub", "with_artifact_store",
}  # fmt: skip

#: Defaults that read differently: (class, method, parameter) → (theirs, ours).
SAME_DEFAULTS = {
    (1, "save", "metadata"): ("{}", "None"),
    (1, "save", "storage_format"): ("'files'", "None"),  # The decorator's, which is 'files'.
}


def test_every_name_parameter_position_and_default_of_the_peers_interface_is_there(
    local: Workspace, peer_python: str
) -> None:
    theirs = local.query(_SURFACE, *PEER, python=peer_python)
    ours = local.query(_SURFACE, *OURS)
    assert set(theirs["exports"]) - set(ours["exports"]) <= ONLY_THEIRS
    assert theirs["defaults"].items() <= ours["defaults"].items()
    seen = 0
    for place, (their_class, our_class) in enumerate(zip(theirs["classes"], ours["classes"], strict=True)):
        for name, parameters in their_class.items():
            if place == 1 and name == "__init__":
                continue  # The decorator makes it.
            assert name in our_class, name
            if parameters is None:
                assert our_class[name] is None, f"{name} is a method here"
                continue
            assert our_class[name] is not None, f"{name} is a property here"
            for position, (parameter, default) in enumerate(parameters):
                assert our_class[name][position][0] == parameter, f"{name}: position {position}"
                expected = SAME_DEFAULTS.get((place, name, parameter), (default, default))
                assert (default, our_class[name][position][1]) == expected, f"{name}({parameter})"
                seen += 1
            # And a call that is complete there is complete here.
            assert all(default is not None for _, default in our_class[name][len(parameters) :]), name
    assert seen > 30


def test_what_is_handed_out_has_the_attributes_of_the_peers(local: Workspace, peer_python: str) -> None:
    from async_ckpt.task.reference import CheckpointInfo

    code = f"""
import json, metaflow
from {_PEER}.datastructures import CheckpointArtifact as C
print(json.dumps([name for name in dir(C) if isinstance(getattr(C, name), property)]))
"""
    theirs = local.query(code, python=peer_python)
    assert {"key", "metadata", "version_id"} <= set(theirs)
    assert all(hasattr(CheckpointInfo(), name) for name in theirs)


@pytest.mark.long
def test_a_flow_that_uses_all_of_the_interface_sees_the_same_in_both_environments(
    local: Workspace, peer_python: str
) -> None:
    def artifacts(python: str, **env: str) -> dict[str, Any]:
        run = local.run_flow("surface_flow", python=python, env=env)
        code = """
import json, sys
from metaflow import Run
data = Run(sys.argv[1], _namespace_check=False).data
print(json.dumps({"same": data.same, "ours": data.ours}))
"""
        found: dict[str, Any] = local.query(code, run.pathspec, python=python)
        return found

    theirs, ours = artifacts(peer_python), artifacts(sys.executable, OURS="1")
    for what, seen in theirs["same"].items():
        assert ours["same"][what] == seen, what
    assert ours["same"].keys() == theirs["same"].keys()
    assert ours["ours"] == {
        "path": True, "given path": "loaded", "path-like": "path-like", "in with": True, "after chdir": [4, 4],
        "pickles": True,
    }  # fmt: skip
    local.assert_clean()
