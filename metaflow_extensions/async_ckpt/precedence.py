"""Sees that this extension serves ``@checkpoint`` and ``Checkpoint`` where metaflow-checkpoint is installed as well.

Of two extensions with the same name Metaflow takes the one that it loads last, and the order depends on how they were
installed: by requirements, else by the alphabet; what is only on ``PYTHONPATH`` comes after all that, in the order of
its folders; and within one folder as the file system lists them. Requirements cannot say "after that one, wherever it
is". So what we serve is taken from metaflow-checkpoint before Metaflow reads it, and all else of it stays. That
happens where ours is declared, in every process that imports Metaflow, also in one that runs from a code package.

And what metaflow-checkpoint reads waits until it is in the store: its own ``save()`` returns no earlier, so nobody who
calls ``load_model`` right after it knows of waiting.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from metaflow.extension_support import get_modules

#: The name of metaflow-checkpoint as an extension.
THEIRS = "obcheckpoint"


def peer(extension_point: str) -> Any:
    """metaflow-checkpoint's part of ``"plugins"`` or ``"toplevel"``; None where Metaflow does not load it."""
    return next((found.module for found in get_modules(extension_point) if found.tl_package == THEIRS), None)


def take_plugin(declared: str, name: str) -> bool:
    """Take a plugin from metaflow-checkpoint. Call it while Metaflow loads plugins, before it merges them.

    Parameters
    ----------
    declared : str
        The list in which it is, e.g. ``"STEP_DECORATORS_DESC"``.

    Returns
    -------
    bool
        Whether metaflow-checkpoint is there and had it.
    """
    plugins = peer("plugins")
    before = getattr(plugins, declared, [])
    kept = [entry for entry in before if entry[0] != name]
    if plugins is not None:
        setattr(plugins, declared, kept)
    return len(kept) < len(before)


def take_export(name: str, ours: Any) -> None:
    """Have ``from metaflow import <name>`` give ``ours``, whichever of the two extensions Metaflow loads last."""
    toplevel = peer("toplevel")
    if toplevel is None:
        return
    exports = toplevel.toplevel  # The name of a module; the module itself, once that was imported.
    if isinstance(exports, str):
        exports = importlib.import_module(f"{toplevel.__name__}.{exports}")
    setattr(exports, name, ours)


def datastructures() -> Any:
    """metaflow-checkpoint's module with the classes of what it stores; None where Metaflow does not load it."""
    if peer("toplevel") is None:
        return None
    return importlib.import_module(f"metaflow_extensions.{THEIRS}.plugins.machine_learning_utilities.datastructures")


def before_reading(hook: Callable[[Any], None]) -> None:
    """Have metaflow-checkpoint call ``hook`` with the reference or key of what it is going to read or delete.

    ``load_model``, ``delete_model`` and ``current.model.load`` look into the store and nowhere else. All of them go
    through one class.
    """
    factory = getattr(datastructures(), "Factory", None)
    for name in _READERS if factory is not None else ():
        setattr(factory, name, classmethod(_after(hook, factory.__dict__[name].__func__)))


#: Methods whose first argument is a reference or a key.
_READERS = ("load", "load_from_key", "load_metadata_from_key", "delete", "delete_from_key")


def _after(hook: Callable[[Any], None], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(cls: Any, reference: Any, *arguments: Any, **named: Any) -> Any:
        hook(reference)
        return function(cls, reference, *arguments, **named)

    return wrapped
