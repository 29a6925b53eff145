"""Which package serves ``@checkpoint`` and ``from metaflow import Checkpoint`` in this environment."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import UsageError

_EXTENSIONS = "metaflow_extensions."
_PEER = "metaflow-checkpoint"
#: Distributions by the name of their extension. What Metaflow calls them depends on how they were installed.
_PACKAGES = {"async_ckpt": "metaflow-async-ckpt", "obcheckpoint": _PEER}


def who_serves() -> dict[str, Any]:
    """Who serves what, as JSON.

    Returns
    -------
    dict
        ``@checkpoint`` and ``Checkpoint``: each with the ``package``, its ``version`` and the ``file``; None where
        nobody serves it. ``metaflow-checkpoint``: its ``version`` and its ``file``; None where Metaflow does not load
        it.

    Raises
    ------
    UsageError
        Metaflow cannot be imported here.
    """
    try:
        import metaflow
        from metaflow.plugins import STEP_DECORATORS
    except Exception as error:  # Any extension may have broken it, in any way.
        raise UsageError(
            f"Metaflow cannot be imported: {type(error).__name__}: {error}", hint="See that 'import metaflow' works"
        ) from error
    loaded = {_package(module.__name__): module for _, module in metaflow.__ext_tl_modules__}
    versions = {package: str(getattr(module, "__version__", None) or "") for package, module in loaded.items()}

    def origin(served: Any) -> dict[str, Any] | None:
        if served is None:
            return None
        package, file = _package(served.__module__), getattr(sys.modules[served.__module__], "__file__", None)
        return {"package": package, "version": versions.get(package, ""), "file": file}

    peer = loaded.get(_PEER)
    return {
        "@checkpoint": origin(next((found for found in STEP_DECORATORS if found.name == "checkpoint"), None)),
        "Checkpoint": origin(getattr(metaflow, "Checkpoint", None)),
        _PEER: {"version": versions[_PEER], "file": peer.__file__} if peer is not None else None,
    }


def _package(module: str) -> str:
    """The distribution that a module belongs to; or its extension, or its package, where that is not known."""
    extension = module.removeprefix(_EXTENSIONS).partition(".")[0]
    return _PACKAGES.get(extension, extension) if module.startswith(_EXTENSIONS) else module.partition(".")[0]


def text_of(answer: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name, served in answer.items():
        if served is None:
            who = "is not here" if name == _PEER else "nobody"
        else:
            who = f"{served.get('package', '')} {served['version']} ({served['file']})".lstrip()
        lines.append(f"{name:<20}{who}")
    return "\n".join(lines)
