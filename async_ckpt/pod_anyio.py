"""anyio for pods: it travels in the code package of a remote task, whose bootstrap brings boto3 and requests alone.

It lies in a folder of its own beside this package, where no import looks by itself. ``install`` puts a finder behind
all others, so that the machine's own anyio is taken wherever there is one, and the folder is on nobody's path.

What anyio needs in turn may be there in a version that is too old for it: images with torch bring an older
``typing_extensions``, which may be imported already. So while it is imported it sees what travelled with it, and nobody
else does: afterwards those names stand for what they stood for before.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

#: The folder's name, beside this package and in the code package.
FOLDER = "async_ckpt_carried"

PACKAGE = "anyio"

#: What anyio may need, by version and Python's version. Not idna: requests brings it, and only host names need it.
_NEEDS = ("typing_extensions", "exceptiongroup", "sniffio")

#: Modules of it that are imported at their first use, and have to see the same as the others.
_LATE = ("anyio.abc", "anyio.from_thread", "anyio.to_thread", "anyio._backends._asyncio")

_HERE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), FOLDER)


def install(folder: str = _HERE) -> None:
    """Let ``import anyio`` find what travelled, where nothing else is found. Does nothing where nothing travelled.

    Parameters
    ----------
    folder : str
        Where it lies.
    """
    if os.path.isdir(os.path.join(folder, PACKAGE)):
        sys.meta_path.append(_Finder(folder))


def files() -> Iterator[tuple[str, str]]:
    """What has to travel: (path, path in the code package) of each file."""
    import importlib.util  # Late: it costs every process of ours tens of milliseconds, and packaging happens in one.

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return
    if isinstance(spec.loader, _Loader):  # It came in a code package itself, with all that it needs.
        yield from _sources(spec.loader.folder, FOLDER)
        return
    for name in (PACKAGE, *_NEEDS):
        found = importlib.util.find_spec(name)
        if found is None:
            continue
        for directory in found.submodule_search_locations or ():
            yield from _sources(directory, f"{FOLDER}/{name}")
        if not found.submodule_search_locations and found.origin is not None:
            yield found.origin, f"{FOLDER}/{name}.py"


def _sources(directory: str, to: str) -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                yield path, os.path.join(to, os.path.relpath(path, directory))


class _Finder:
    """Finds anyio in a folder; its submodules are then found through it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, [self._folder])
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._folder)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, folder: str) -> None:
        super().__init__(fullname, path)
        self.folder = folder

    def exec_module(self, module: ModuleType) -> None:
        with _seen_from(self.folder):
            super().exec_module(module)
            for name in _LATE:
                importlib.import_module(name)


@contextlib.contextmanager
def _seen_from(folder: str) -> Iterator[None]:
    """The world as what lies in the folder is to see it: its own needs before those of the machine."""
    carried = [name for name in _NEEDS if PathFinder.find_spec(name, [folder]) is not None]

    def take_out() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in carried}

    kept = take_out()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        take_out()
        sys.modules.update(kept)
