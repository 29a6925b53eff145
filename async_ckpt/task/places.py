"""Where a checkpoint may be: the store of the task or of Metaflow's settings, and where its reference says that it was
saved. A datastore may have been moved since, or be another one than the task's.

A reference is data that somebody else may have written: places that come from one are only ever read from.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import NotFound, StoreError, UsageError
from ..stores.base import StoreSpec

#: Kinds of stores that can be read here.
KINDS = ("local", "s3", "metaflow-s3")


def of_reference(reference: Mapping[str, Any] | str, own: StoreSpec | None = None) -> StoreSpec | None:
    """The store that a reference's ``url`` lies in; None for a key, and where the two do not fit each other.

    Its kind may be none of ``KINDS``: then it is the scheme of the address.

    Parameters
    ----------
    own : StoreSpec, optional
        The task's store. Another root is opened with its settings where those are of the kind ``"s3"``, else with
        Metaflow's.
    """
    if not isinstance(reference, Mapping):
        return None
    url, key = reference.get("url"), reference.get("key")
    if not isinstance(url, str) or not isinstance(key, str) or not key or not url.endswith(f"/{key}") or "\0" in url:
        return None
    root = url[: -len(key) - 1]
    scheme, separator, rest = root.partition("://")
    if not separator:
        # Other clients write a relative one where METAFLOW_DATASTORE_SYSROOT_LOCAL is relative.
        return StoreSpec("local", os.path.abspath(root or "/"))
    if not rest.partition("/")[0]:
        return None
    if scheme != "s3":
        return StoreSpec(scheme, root)
    return (
        dataclasses.replace(own, root=root) if own is not None and own.kind == "s3" else StoreSpec("metaflow-s3", root)
    )


def distinct(*stores: StoreSpec | None) -> list[StoreSpec]:
    """Those that are there, in their order, each root once."""
    found: dict[str, StoreSpec] = {}
    for spec in stores:
        if spec is not None:
            found.setdefault(spec.root.rstrip("/"), spec)
    return list(found.values())


def with_default(*stores: StoreSpec | None) -> list[StoreSpec]:
    """Those that are there, and then where Metaflow is configured to keep things.

    Raises
    ------
    UsageError
        There is no such place.
    """
    from ..stores.metaflow import default_spec  # Late: it brings Metaflow.

    found = distinct(*stores)
    try:
        return distinct(*found, default_spec())
    except UsageError:
        if not found:
            raise
        return found


def in_none_of(stores: Sequence[StoreSpec], failed: Sequence[StoreError]) -> StoreError:
    """The error that names all stores that were looked in, with the reason of each."""
    kind = NotFound if any(isinstance(error, NotFound) for error in failed) else StoreError
    looked = "; ".join(f"{spec.root}: {error.what}" for spec, error in zip(stores, failed, strict=True))
    hints = dict.fromkeys(error.hint for error in failed if error.hint)
    return kind(f"The checkpoint is in none of the places where it may be. {looked}", hint=". ".join(hints))
