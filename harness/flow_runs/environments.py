"""What other Pythons are started with: this one's modules, or a virtual environment beside the tests' own.

Those are made once, then found again; for the first time pip needs the network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from harness.flow_runs.metaflow_env import REPOSITORY

#: Versions that fit each other, as the tests' own environment has them: pip would try every boto3 there ever was.
FITTING = tuple(f"{name}=={metadata.version(name)}" for name in ("aiobotocore", "boto3", "botocore"))


def with_our_modules() -> dict[str, str]:
    """The environment in which another Python finds what this one does, these tests included, wherever it is started.

    The working directory is no such place: with ``PYTHONSAFEPATH`` set, ``python -c`` does not look there.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def find_or_make(name: str, *installs: Sequence[str], lender: Path | None = None) -> Path:
    """The directory ``<name>-<digest>`` at the repository's root: an environment in which pip did each of ``installs``.

    The digest is of ``installs`` and ``lender``: no two tests that want different packages ever share, or replace, one.
    What it has not got itself is imported from ``lender``, another environment.
    """
    wanted = repr((installs, str(lender))) if lender else repr(installs)
    directory = REPOSITORY / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    done = directory / "complete"
    # Test processes that run side by side make it once.
    with open(f"{directory}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
            _copy_pip(_site_packages(directory))
            for arguments in installs:
                # What is imported is compiled then; that is a fraction.
                pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
                subprocess.run([*pip, *arguments], check=True)
            if lender:
                _site_packages(directory).joinpath("lent.pth").write_text(f"{_site_packages(lender)}\n")
            done.write_text(wanted)
    return directory


def _copy_pip(target: Path) -> None:
    """This Python's pip, compiled: venv would unpack and compile one, which takes as long as what is installed then."""
    ours = metadata.distribution("pip")
    for name in {file.parts[0] for file in ours.files or () if file.parts[0].startswith("pip")}:
        shutil.copytree(str(ours.locate_file(name)), target / name)


def _site_packages(environment: Path) -> Path:
    found = list(environment.glob("lib/python3*/site-packages"))
    assert len(found) == 1, f"{environment} is no virtual environment"
    return found[0]
