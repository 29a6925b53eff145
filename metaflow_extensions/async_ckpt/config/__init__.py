"""What conda and pypi environments need so that remote tasks can upload."""

from __future__ import annotations


def get_pinned_conda_libs(python_version: str, datastore_type: str) -> dict[str, str]:
    """Packages, by name, with version constraints, for ``@conda`` and ``@pypi`` environments."""
    pins = {"anyio": ">=4.4"}
    if datastore_type == "s3":
        pins["aiobotocore"] = ">=3.0"
    return pins
