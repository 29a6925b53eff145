"""Adding to the metadata of a checkpoint: what is given, and how it gets into the store without a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Config
from ..errors import NotFound, UsageError
from ..metadata import plain
from ..stores import catalog
from ..stores.base import Store, StoreSpec
from ..upload.annotate import annotate
from .lookup import first_answer


def added(metadata: Mapping[str, Any] | None, values: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What is to be added, as plain JSON: a dict, and values by name.

    Raises
    ------
    UsageError
        There is nothing, or it is no dict.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UsageError(f"{metadata!r:.100} is no dict", hint="reference.annotate(loss=0.3)")
    found, _ = plain({**(metadata or {}), **values}, config)
    if not isinstance(found, dict) or not found:
        raise UsageError("There is nothing to add to the metadata", hint="reference.annotate(loss=0.3)")
    return found


def annotate_in(
    places: Sequence[StoreSpec], reference: Mapping[str, Any] | str, metadata: Mapping[str, Any], config: Config
) -> dict[str, Any]:
    """Add to the metadata of a checkpoint in the first of some stores that has it. Returns the checkpoint as it is now.

    Raises
    ------
    UsageError, NotFound
        There is no such checkpoint.
    StoreError
        The store refuses, or is out of reach.
    """

    async def add(store: Store) -> dict[str, Any]:
        data = await catalog.find(store, reference)
        return {
            **data,
            "metadata": await annotate(store, data["key"], data["pathspec"], metadata, config.metadata_bytes),
        }

    found, failed = first_answer(places, config, add)
    if found is None:
        raise failed[0] if failed else NotFound("There is no such checkpoint in the store")
    return found
