"""Sees that this extension serves ``@checkpoint`` and ``Checkpoint`` where metaflow-checkpoint is installed as well.

Of two extensions with the same name Metaflow takes the one that it loads last, and the order depends on how they were
installed: by requirements, else by the alphabet; what is only on ``PYTHONPATH`` comes after all that, in the order of
its folders; and within one folder as the file system lists them. Requirements cannot say "after that one, wherever it
is". So the two names are taken from metaflow-checkpoint before Metaflow reads them, and all else of it stays. That
happens where ours are declared, in every process that imports Metaflow, also in one that runs from a code package.
"""

from __future__ import annotations

import importlib
from typing import Any

from metaflow.extension_support import get_modules

#: The name of metaflow-checkpoint as an extension.
THEIRS = "obcheckpoint"


def peer(extension_point: str) -> Any:
    """metaflow-checkpoint's part of ``"plugins"`` or ``"toplevel"``; None where Metaflow does not load it."""
    return next((found.module for found in get_modules(extension_point) if found.tl_package == THEIRS), None)


def take_decorator(name: str) -> None:
    """Take a step decorator from metaflow-checkpoint; call it while Metaflow loads plugins, before it merges them."""
    plugins = peer("plugins")
    if plugins is not None:
        plugins.STEP_DECORATORS_DESC = [entry for entry in plugins.STEP_DECORATORS_DESC if entry[0] != name]


def take_export(name: str, ours: Any) -> None:
    """Have ``from metaflow import <name>`` give ``ours``, whichever of the two extensions Metaflow loads last."""
    toplevel = peer("toplevel")
    if toplevel is None:
        return
    exports = toplevel.toplevel  # The name of a module; the module itself, once that was imported.
    if isinstance(exports, str):
        exports = importlib.import_module(f"{toplevel.__name__}.{exports}")
    setattr(exports, name, ours)
