"""The stores in which a checkpoint may be: that of the task, that of Metaflow's settings, and the one in which its
reference says that it was saved. A datastore may have been moved since, or be another one than the task's.

A reference is data that somebody else may have written: a store that is named by one is only ever read from.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..config import Config
from ..errors import IntegrityError, StoreError, TransientStoreError, UsageError
from ..stores import KINDS, open_store
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


def first_answer(
    places: Sequence[StoreSpec], config: Config, function: Callable[[Store], Awaitable[T]]
) -> tuple[T | None, list[StoreError]]:
    """What a function finds in the first of some stores in which it finds anything; None where that is none of them.
    Also why those before it could not be asked, or have nothing.

    Raises
    ------
    TransientStoreError
        One of them is out of reach at this time: it may have what the next ones have not, so those are not asked.
    UsageError, IntegrityError
        What is asked for makes no sense, or is damaged.
    """
    failed: list[StoreError] = []
    for spec in places:
        try:
            if spec.kind not in KINDS:
                raise StoreError(f"Stores of the kind {spec.kind!r} cannot be read", where=spec.root)
            if found := run_with_store(spec, config, function):
                return found, failed
        except (IntegrityError, TransientStoreError):
            raise
        except StoreError as error:
            failed.append(error)
    return None, failed


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
