"""The architecture's lines: who may import whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import async_ckpt

PACKAGE = Path(async_ckpt.__file__).parent
EXTENSION = PACKAGE.parent / "metaflow_extensions" / "async_ckpt"

#: Lowest first: a module may import from the rooms that stand before its own, and from its own.
LAYERS = (
    "pod_anyio",
    "errors",
    "config",
    "metadata",
    "system",
    "layout",
    "manifest",
    "stores",
    "capture",
    "retention",
    "spool",
    "ipc",
    "ranks",
    "card",
    "upload",
    "agent",
    "task",
    "state",
    "watch",
    "cli",
    "integrations",
)
#: Within the room of alternatives, siblings may only import these.
SHARED_BY_STORES = {"base", "retry", "throttle", "same_content"}
#: A store's own helpers are private to it, by their prefix; the factory knows all of its room.
HEAVY = {"metaflow", "aiobotocore", "botocore", "aiohttp", "boto3", "watchdog"}


def modules(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.py"))


def imports(path: Path, package: str) -> set[str]:
    """Absolute names of everything a file imports, inside of functions as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def package_of(path: Path, root: Path, name: str) -> str:
    return ".".join([name, *path.relative_to(root).parent.parts])


def own_imports(path: Path) -> set[str]:
    """Modules of the library that a file of the library imports, without the library's name."""
    prefix = "async_ckpt."
    return {
        name[len(prefix) :]
        for name in imports(path, package_of(path, PACKAGE, "async_ckpt"))
        if name.startswith(prefix)
    }


def layer_of(module: str) -> int | None:
    room = module.split(".")[0]
    return LAYERS.index(room) if room in LAYERS else None


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_above_it_in_the_list(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert own_imports(path) <= {"pod_anyio", "pod_anyio.install"}
        return
    assert room in LAYERS, f"{room} has no layer yet: give it one"
    too_high = [
        name for name in own_imports(path) if (layer := layer_of(name)) is not None and layer > LAYERS.index(room)
    ]
    assert not too_high


def test_stores_share_only_what_is_made_for_sharing() -> None:
    siblings = {path.stem for path in (PACKAGE / "stores").glob("*.py")} - {"__init__"}
    for path in (PACKAGE / "stores").glob("*.py"):
        if path.stem == "__init__":
            continue
        used = {name.split(".")[1] for name in own_imports(path) if name.startswith("stores.")} & siblings
        private = {name for name in used if name.startswith(f"_{path.stem.lstrip('_').split('_')[0]}_")}
        assert used - private - SHARED_BY_STORES - {path.stem} == set(), path.name


def test_beside_the_extension_only_what_asks_metaflow_imports_it() -> None:
    importing = {str(path.relative_to(PACKAGE)) for path in modules(PACKAGE) if "metaflow" in roots(path)}
    assert importing == {
        "stores/metaflow.py",
        "task/which.py",
        "task/listing.py",
        "task/runs.py",
        "integrations/_task.py",
    }


def test_integrations_use_what_every_user_has_and_share_three_files() -> None:
    """Nothing imports them, as their room is the last one."""
    for path in (PACKAGE / "integrations").glob("*.py"):
        used = {name for name in own_imports(path) if name not in ("config", "errors")}
        used -= {name for name in used if name.startswith(("config.", "errors."))}
        used -= {name for name in used if name.startswith(f"integrations._{path.stem}_")}  # Its own.
        shared = {"__init__": set(), "_task": {"task.checkpointer", "task.checkpointer.Checkpointer"}}.get(
            path.stem, {"integrations", *(f"integrations._{name}" for name in ("nodes", "random", "task"))}
        )
        assert {name for name in used if not name.startswith("integrations._task.")} <= shared, path.name


def test_only_the_s3_store_imports_aws_libraries() -> None:
    importing = {path for path in modules(PACKAGE) if roots(path) & {"aiobotocore", "botocore", "aiohttp", "boto3"}}
    assert importing
    assert {path.parent for path in importing} == {PACKAGE / "stores" / "s3"}


def test_only_the_watch_imports_watchdog() -> None:
    assert {str(path.relative_to(PACKAGE)) for path in modules(PACKAGE) if "watchdog" in roots(path)} == {
        "watch/events.py"
    }


def test_a_state_imports_neither_torch_nor_numpy_before_there_is_a_tensor_of_theirs() -> None:
    code = """
import sys
import async_ckpt.state.stager, async_ckpt.state.load
from async_ckpt.state.plan import plan
plan({"a": [1, (2.5, None)]})
print({"torch", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_nothing_in_the_library_imports_the_extension() -> None:
    assert not [path for path in modules(PACKAGE) if "metaflow_extensions" in roots(path)]


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path, package_of(path, PACKAGE, "async_ckpt"))}


def test_the_extension_reaches_the_library_only_from_above() -> None:
    """It speaks to the checkpointer and what it is made of, never to the agent's or the socket's inside."""
    inside = {
        "async_ckpt.ipc",
        "async_ckpt.agent.agent",
        "async_ckpt.agent.queue",
        "async_ckpt.agent.guard",
        "async_ckpt.spool.journal",
    }
    for path in modules(EXTENSION):
        used = imports(path, package_of(path, EXTENSION.parent.parent, "x").removeprefix("x."))
        assert not {name for name in used if any(name == room or name.startswith(f"{room}.") for room in inside)}, (
            path.name
        )


def test_the_control_plane_runs_on_the_standard_library_alone() -> None:
    """Everything the agent's process imports, in an interpreter that has nothing else."""
    code = f"""
import ast, importlib, json, sys
sys.path.append({str(PACKAGE.parent)!r})
before = set(sys.modules)
import async_ckpt.agent.__main__ as entry
tree = ast.parse(open(entry.__file__).read())
for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.level:
        for alias in node.names:
            base = "async_ckpt.agent" if node.level == 1 else "async_ckpt"
            name = f"{{base}}.{{node.module}}" if node.module else f"{{base}}.{{alias.name}}"
            if name != "async_ckpt.upload.process":
                importlib.import_module(name)
print(json.dumps([[name, getattr(module, "__file__", None)] for name, module in sys.modules.items()]))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = dict(json.loads(done.stdout))
    assert "async_ckpt.agent.agent" in loaded
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"async_ckpt", "__main__"}
    assert not foreign
    # They would work, but each costs the start of every task tens of milliseconds.
    assert not {"asyncio", "anyio", "ssl", "multiprocessing", "unittest", "urllib"} & {
        name.split(".")[0] for name in loaded
    }
