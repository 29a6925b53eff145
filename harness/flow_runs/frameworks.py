"""Environments with training frameworks: alone, with ours, with metaflow-checkpoint, and with both.

Made once, then found again; for the first time pip needs the network. ``ASYNC_CKPT_FRAMEWORKS_VENV`` names an
environment that exists and has the frameworks, which are large.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from harness.flow_runs.environments import find_or_make
from harness.flow_runs.metaflow_env import REPOSITORY
from harness.flow_runs.peer import REQUIREMENTS

#: They fit each other. Of torch the build for CPUs is enough. The last three are only for what is watched.
FRAMEWORKS = (
    "torch==2.13.0", "pytorch-lightning==2.6.1", "transformers==5.24.0", "accelerate==1.15.0", "keras==3.15.1",
    "xgboost-cpu==3.2.0", "peft==0.21.2", "orbax-checkpoint==0.12.8", "jax==0.10.2", "tensorflow-cpu==2.21.0",
    "torch_checkpointing==0.1.1",
)  # fmt: skip


def find_or_make_frameworks() -> str:
    """The interpreter of an environment with all frameworks, and nothing of ours."""
    return _python(_frameworks())


def find_or_make_incumbent() -> str:
    """The interpreter of an environment with metaflow-checkpoint alone, and the frameworks."""
    return _python(find_or_make(".venv-incumbent", REQUIREMENTS, lender=_frameworks()))


def find_or_make_both() -> str:
    """The interpreter of an environment with ours beside metaflow-checkpoint, and the frameworks."""
    ours = ("--editable", f"{REPOSITORY}[metaflow-checkpoint]", *REQUIREMENTS, *_needed())
    return _python(find_or_make(".venv-both-frameworks", ours, lender=_frameworks()))


def find_or_make_with_ours() -> str:
    """The interpreter of an environment with ours, and the frameworks."""
    return _python(
        find_or_make(".venv-ours-frameworks", ("--editable", str(REPOSITORY), *_needed()), lender=_frameworks())
    )


def _needed() -> list[str]:
    """What ours needs, by name as well: with other requirements it is another environment."""
    return [each for each in metadata.requires("metaflow-async-ckpt") or () if "extra" not in each]


def _frameworks() -> Path:
    given = os.environ.get("ASYNC_CKPT_FRAMEWORKS_VENV")
    return Path(given) if given else find_or_make(".venv-frameworks", FRAMEWORKS)


def _python(directory: Path) -> str:
    return str(directory / "bin" / "python")
