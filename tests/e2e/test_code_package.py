"""What Metaflow puts into a code package, from an editable install and from a wheel; what a task needs beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from async_ckpt import pod_anyio
from harness.flow_runs.metaflow_env import FLOWS, REPOSITORY, Workspace

_SAVE = """
import runpy, sys
{first}
sys.argv = [{flow!r}, "--no-pylint", "package", "save", {archive!r}]
runpy.run_path({flow!r}, run_name="__main__")
"""


def _sources(package: str) -> set[str]:
    folder = REPOSITORY / package
    return {str(path.relative_to(REPOSITORY)) for path in folder.rglob("*.py")}


EXPECTED = _sources("async_ckpt") | _sources("metaflow_extensions")


def packaged(
    local: Workspace, first: str = "", options: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> set[str]:
    """Names in the code directory of the package that Metaflow makes of a flow."""
    archive = local.root / "package.tgz"
    code = _SAVE.format(first=first, flow=str(FLOWS / "save_flow.py"), archive=str(archive))
    local.run_command([sys.executable, *options, "-c", code], env=env)
    with tarfile.open(archive) as package:
        return {name.removeprefix(".mf_code/") for name in package.getnames() if name.startswith(".mf_code/")}


def assert_complete(names: set[str]) -> None:
    assert names >= EXPECTED
    assert names >= {name for _, name in pod_anyio.files()}
    assert f"{pod_anyio.FOLDER}/anyio/_backends/_asyncio.py" in names


def test_an_editable_install_travels_with_what_it_needs(local: Workspace) -> None:
    assert_complete(packaged(local))


@pytest.mark.long
def test_a_wheel_travels_with_what_it_needs(local: Workspace, tmp_path: Path) -> None:
    source, installed, others = tmp_path / "source", tmp_path / "installed", tmp_path / "others"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("async_ckpt", "metaflow_extensions"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(source)]
    subprocess.run(pip, check=True, timeout=150)
    # All that is installed here but the editable install, which -S leaves out of the path.
    others.mkdir()
    site = Path(str(metadata.distribution("metaflow").locate_file("")))
    for entry in site.iterdir():
        if "async_ckpt" not in entry.name:
            (others / entry.name).symlink_to(entry)

    check = f"import async_ckpt; assert async_ckpt.__file__.startswith({str(installed)!r})"
    paths = os.pathsep.join([str(installed), str(others)])
    assert_complete(packaged(local, check, ("-S",), {"PYTHONPATH": paths}))


_PINS = """
import json
from metaflow.metaflow_config import get_pinned_conda_libs
print(json.dumps([get_pinned_conda_libs("3.11", kind) for kind in ("s3", "local")]))
"""


def test_conda_and_pypi_environments_get_what_the_agent_works_best_with(local: Workspace) -> None:
    on_s3, on_disk = local.query(_PINS)
    assert on_s3["aiobotocore"] == ">=3.0"
    assert "boto3" in on_s3, "Metaflow's own are still there"
    assert "aiobotocore" not in on_disk
    for pins in (on_s3, on_disk):
        assert pins["anyio"] == ">=4.7"
        assert pins["watchdog"] == ">=4"


def test_the_pins_are_those_of_this_package(local: Workspace) -> None:
    on_s3, _ = local.query(_PINS)
    required = metadata.requires("metaflow-async-ckpt") or []
    for name in ("anyio", "aiobotocore", "watchdog"):
        assert f"{name}{on_s3[name]}" in required


_CHECK = """
import importlib.util, json, sys
from importlib import metadata
import metaflow
from metaflow_extensions.async_ckpt.plugins import checkpoint_decorator
from async_ckpt.errors import UsageError
{world}
try:
    checkpoint_decorator._check_installed()
    print(json.dumps(""))
except UsageError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ("", r"$"),
        ("sys.modules['aiobotocore'] = None", r"$"),
        ("metadata.version = {'anyio': '4.7.0'}.get", r"$"),
        ("metadata.version = {'anyio': '4.6.2.post1'}.get", r".*anyio 4\.7 or later .* not 4\.6\.2\.post1.*@pypi"),
        ("importlib.util.find_spec = lambda name: None", r".*anyio .* not installed there.*@pypi"),
    ],
    ids=["all there", "no aiobotocore", "oldest anyio", "too old an anyio", "no anyio"],
)
def test_an_attempt_is_refused_at_its_start_only_where_nothing_could_be_uploaded(
    local: Workspace, world: str, said: str
) -> None:
    assert re.match(said, local.query(_CHECK.format(world=world)))
