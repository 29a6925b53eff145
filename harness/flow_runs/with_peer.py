"""Environments with this package and metaflow-checkpoint 0.2.14 (the peer) side by side.

``find_or_make_both`` is one as users have it: both by pip, ours editable. ``Site`` is a bare interpreter into which
each of the two is laid in one of the ways in which packages are installed, in milliseconds.
"""

from __future__ import annotations

import shutil
import venv
from importlib import metadata
from pathlib import Path

from harness.flow_runs.environments import FITTING, find_or_make
from harness.flow_runs.metaflow_env import REPOSITORY
from harness.flow_runs.peer import REQUIREMENTS

_OURS = ("async_ckpt", "metaflow_extensions/async_ckpt")
_THEIRS = ("metaflow_extensions/obcheckpoint",)


def find_or_make_both() -> str:
    """The interpreter of an environment with both."""
    directory = find_or_make(".venv-both", (*REQUIREMENTS, *FITTING, "tqdm", "--editable", str(REPOSITORY)))
    return str(directory / "bin" / "python")


class Site:
    """An interpreter with all that the tests' own has, but this package.

    Parameters
    ----------
    root : Path
        An empty directory.
    peer : Path
        A folder in which ``metaflow_extensions/obcheckpoint`` lies.
    """

    def __init__(self, root: Path, peer: Path) -> None:
        self._root, self._peer = root, peer
        venv.create(root / "env", symlinks=True)
        self.python = str(root / "env" / "bin" / "python")
        (self._packages,) = (root / "env" / "lib").glob("python3*/site-packages")
        for entry in Path(str(metadata.distribution("metaflow").locate_file(""))).iterdir():
            if "async_ckpt" not in entry.name and not (self._packages / entry.name).exists():
                (self._packages / entry.name).symlink_to(entry)
        #: Folders for PYTHONPATH, in their order.
        self.path: list[str] = []

    def lay(self, who: str, way: str, name: str = "") -> None:
        """Install "ours" or the "peer".

        Parameters
        ----------
        way : str
            ``"wheel"``: files and their description. ``"editable"``: the description, and a ``.pth`` file that names
            the source. Anything else: no description; the files are in a folder of that name on PYTHONPATH.
        name : str
            What it is called in its description; default: as on PyPI.
        """
        source, folders = (REPOSITORY, _OURS) if who == "ours" else (self._peer, _THEIRS)
        name = name or ("metaflow-async-ckpt" if who == "ours" else "metaflow-checkpoint")
        if way not in ("wheel", "editable"):
            target = self._root / way
            self._copy(source, folders, target)
            if str(target) not in self.path:
                self.path.append(str(target))
        elif way == "wheel":
            self._describe(name, self._copy(source, folders, self._packages))
        else:
            elsewhere = self._root / f"source of {who}"
            self._copy(source, folders, elsewhere)
            pth = f"__editable__.{name}.pth"
            (self._packages / pth).write_text(f"{elsewhere}\n")
            self._describe(name, [pth])

    def _copy(self, source: Path, folders: tuple[str, ...], target: Path) -> list[str]:
        for folder in folders:
            shutil.copytree(source / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
        return [str(p.relative_to(target)) for f in folders for p in (target / f).rglob("*") if p.is_file()]

    def _describe(self, name: str, files: list[str]) -> None:
        folder = self._packages / f"{name.replace('-', '_')}-9.9.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        (folder / "top_level.txt").write_text("async_ckpt\nmetaflow_extensions\n")
        (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def peer_folder(python: str) -> Path:
    """Where an environment has ``metaflow_extensions/obcheckpoint``."""
    (found,) = Path(python).parents[1].glob("lib/python3*/site-packages/metaflow_extensions/obcheckpoint")
    return found.parents[1]
