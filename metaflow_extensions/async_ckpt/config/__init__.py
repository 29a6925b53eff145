"""Settings that Metaflow hands on to remote tasks, and what their conda and pypi environments need."""

from __future__ import annotations

import dataclasses

from metaflow.metaflow_config_funcs import from_conf

from async_ckpt.config import Config

# One option a setting: those that are set travel in a remote task's environment. They have no default here, and so no
# type: a wrong value is refused when a flow starts (Config.from_env), and must not break every ``import metaflow``.
for _field in dataclasses.fields(Config):
    globals()[f"ASYNC_CKPT_{_field.name.upper()}"] = from_conf(f"ASYNC_CKPT_{_field.name.upper()}")


def get_pinned_conda_libs(python_version: str, datastore_type: str) -> dict[str, str]:
    """Packages, by name, with version constraints, for ``@conda`` and ``@pypi`` environments.

    Metaflow takes the same names for both. So zlib-ng is not among them: conda's package of that name is the C library,
    which not every channel has, and checksums work without it, only slower.
    """
    pins = {"anyio": ">=4.7", "watchdog": ">=4"}
    if datastore_type == "s3":
        pins["aiobotocore"] = ">=3.0"
    return pins
