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
        nobody serves it. ``metaflow-checkpoint``: its ``version``, its ``file``, and what it ``adds``; None where
        Metaflow does not load it.

    Raises
    ------
    UsageError
        Metaflow cannot be imported here.
    """
    try:
        import metaflow
        from metaflow.plugins import DATASTORES, FLOW_DECORATORS, STEP_DECORATORS
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

    decorators = {found.name: found for found in STEP_DECORATORS}
    answer = {
        "@checkpoint": origin(decorators.get("checkpoint")),
        "Checkpoint": origin(getattr(metaflow, "Checkpoint", None)),
    }
    if _PEER not in loaded:
        return {**answer, _PEER: None}
    plugins = {**decorators, **{f.name: f for f in FLOW_DECORATORS}, **{d.TYPE: d for d in DATASTORES}}
    found = {f"@{n}" if hasattr(p, "name") else f"datastore {n}": p for n, p in plugins.items()}
    found |= {name: value for name, value in vars(loaded[_PEER]).items() if callable(value)}
    adds = sorted(name for name, value in found.items() if _is_theirs(value))
    return {**answer, _PEER: {"version": versions[_PEER], "file": loaded[_PEER].__file__, "adds": adds}}


def _package(module: str) -> str:
    """The distribution that a module belongs to; or its extension, or its package, where that is not known."""
    extension = module.removeprefix(_EXTENSIONS).partition(".")[0]
    return _PACKAGES.get(extension, extension) if module.startswith(_EXTENSIONS) else module.partition(".")[0]


def _is_theirs(value: Any) -> bool:
    """Whether a plugin or function is metaflow-checkpoint's, or made from one of theirs."""
    return any(_package(str(kind.__module__)) == _PEER for kind in getattr(value, "__mro__", (value,)))


def text_of(answer: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name in ("@checkpoint", "Checkpoint"):
        served = answer[name]
        who = f"{served['package']} {served['version']} ({served['file']})" if served else "nobody"
        lines.append(f"{name:<20}{who}")
    peer = answer[_PEER]
    if peer is None:
        lines.append(f"{_PEER:<20}is not here")
    else:
        lines.append(f"{_PEER:<20}{peer['version']} ({peer['file']})")
        lines.append(f"{'':<20}adds {', '.join(peer['adds'])}")
    return "\n".join(lines)
