"""Where checkpoints end up. ``base.py`` is the contract of a store; CONTRIBUTING.md says how to add one."""

from __future__ import annotations

import importlib

from ..config import Config
from ..errors import UsageError
from .base import Store, StoreSpec

__all__ = ["KINDS", "open_store"]

#: The kinds of stores, and the module of this package whose ``open_store`` makes one.
KINDS = {"local": "local", "metaflow-s3": "metaflow"}


def open_store(spec: StoreSpec, config: Config) -> Store:
    """Make the store that ``spec`` describes, with retries. Nothing is connected yet.

    Only the libraries of that kind of store are imported; ``metaflow-s3`` imports Metaflow and may take a second.

    Raises
    ------
    UsageError
        The kind or the root is not known here, or what it needs is not installed.
    """
    if spec.kind not in KINDS:
        raise UsageError(
            f"There is no store of the kind {spec.kind!r}", where=spec.root, hint=f"Use one of {', '.join(KINDS)}"
        )
    # Imported late: the agent's control plane reads specifications with the standard library alone.
    module = importlib.import_module(f".{KINDS[spec.kind]}", __package__)
    store: Store = module.open_store(spec, config)
    return store
