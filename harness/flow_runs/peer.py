"""metaflow-checkpoint 0.2.14 in a virtual environment of its own: made once, then found again.

``ASYNC_CKPT_PEER_VENV`` names one that exists; without it, ``.venv-peer`` is made at the repository's root, for which
pip needs the network.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.flow_runs.environments import find_or_make

REQUIREMENTS = ("metaflow>=2.19", "metaflow-checkpoint==0.2.14", "boto3", "requests")


def find_or_make_peer() -> str:
    """The interpreter of the peer's environment."""
    given = os.environ.get("ASYNC_CKPT_PEER_VENV")
    directory = Path(given) if given else find_or_make(".venv-peer", REQUIREMENTS)
    python = directory / "bin" / "python"
    assert python.exists(), f"ASYNC_CKPT_PEER_VENV={given} is no virtual environment"
    return str(python)


def copy_peer_to(python: str, directory: Path) -> None:
    """Lay metaflow-checkpoint alone into ``directory``, as ``pip install --target --no-deps`` would."""
    (found,) = Path(python).parents[1].glob("lib/python3*/site-packages/metaflow_checkpoint-*.dist-info")
    shutil.copytree(found, directory / found.name)
    shutil.copytree(
        found.parent / "metaflow_extensions" / "obcheckpoint", directory / "metaflow_extensions" / "obcheckpoint"
    )
