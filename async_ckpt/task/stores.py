"""The stores in which a checkpoint may be: that of the task, that of Metaflow's settings, and the one in which its
reference says that it was saved. A datastore may have been moved since, or be another one than the task's.

A reference is data that somebody else may have written: a store that is named by one is only ever read from.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..config import Config
from ..errors import NotFound, StoreError, TransientStoreError, UsageError
from ..stores import open_store
from ..stores.base import Store, StoreSpec
from ..system.undisturbed import ended_by, go_on

T = TypeVar("T")


def of_reference(reference: Mapping[str, Any] | str) -> StoreSpec | None:
    """The store that a reference's ``url`` lies in; None for a key, and where the two do not fit each other.

    Its kind may be none of ``stores.KINDS``: then it is the scheme of the address.
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
    if scheme != "s3":
        return StoreSpec(scheme, root)
    if not rest.partition("/")[0]:
        return None
    return StoreSpec("metaflow-s3", root)


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


def list_from_first(
    stores: Sequence[StoreSpec], listing: Callable[[Store], Awaitable[list[dict[str, Any]]]], config: Config
) -> list[dict[str, Any]]:
    """The first listing of some stores that is not empty; an empty one where none has anything.

    Raises
    ------
    StoreError
        One of them cannot be listed, and the others have nothing; or it is out of reach at this time.
    """
    failed: list[StoreError] = []
    for spec in stores:
        try:
            found = run_with_store(spec, config, listing)
        except TransientStoreError:
            raise
        except StoreError as error:
            failed.append(error)
            continue
        if found:
            return found
    if failed:
        raise failed[0]
    return []


def run_with_store(spec: StoreSpec, config: Config, function: Callable[[Store], Awaitable[T]]) -> T:
    """Open a store, call an asynchronous function with it, close it; in a thread, so that a caller's event loop does
    not matter.
    """

    async def call() -> T:
        store = open_store(spec, config)
        try:
            return await function(store)
        finally:
            await store.aclose()

    # Late: every Metaflow process imports this module, few of them ask a store.
    from concurrent.futures import CancelledError

    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        answer = portal.start_task_soon(call)
        with ended_by(answer.cancel):
            try:
                return answer.result()
            except CancelledError:
                go_on()
                raise
