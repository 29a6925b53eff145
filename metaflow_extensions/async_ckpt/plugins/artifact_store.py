"""Which stores checkpoints go to and come from: Metaflow's datastore, or what metaflow-checkpoint's
``@with_artifact_store`` and ``artifact_store_from`` name.

metaflow-checkpoint need not be installed: where its modules are not loaded, nobody uses the two.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from async_ckpt.stores.base import StoreSpec
from async_ckpt.task import lookup
from async_ckpt.task.listing import NOTED_ROOT, NOTED_TYPE

_ROOM = "metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.datastore"
#: metaflow-checkpoint calls what any client of S3 can read "s3".
_NOTED_TYPES = {"s3-compatible": "s3"}


def store_of_flow(flow: Any, flow_datastore: Any) -> tuple[StoreSpec, list[tuple[str, str]]]:
    """Where the checkpoints of a flow's tasks go, and what a task is to note of it (pairs of a field and its value).

    Raises
    ------
    UsageError
        Checkpoints cannot be kept there.
    """
    from async_ckpt.stores.metaflow import ENV_ARTIFACT_STORE, artifact_store, spec_for

    if not _has_artifact_store(flow):
        return spec_for(flow_datastore.TYPE, flow_datastore.datastore_root), []
    # Its decorator has put it there when this process began; the uploader's process looks there, too.
    context = json.loads(os.environ.get(ENV_ARTIFACT_STORE, "null"))
    spec = artifact_store(context)
    return spec, [(NOTED_TYPE, _NOTED_TYPES.get(context["type"], context["type"])), (NOTED_ROOT, spec.root)]


def store_of_cards(flow_datastore: Any) -> StoreSpec:
    """Where Metaflow keeps the cards of a flow.

    Raises
    ------
    UsageError
        This library cannot write there, or no place for cards is set.
    """
    from metaflow.metaflow_config import CARD_LOCALROOT
    from metaflow.plugins.cards.card_datastore import CardDatastore

    from async_ckpt.stores.metaflow import spec_for

    # Metaflow's own function has no answer where this setting is one.
    return spec_for(flow_datastore.TYPE, CardDatastore.get_storage_root(flow_datastore.TYPE) or CARD_LOCALROOT)


def _has_artifact_store(flow: Any) -> bool:
    """Whether the flow has ``@with_artifact_store``, or a decorator that is made from it.

    The environment does not tell: a flow that is run by a step inherits that of the outer one.
    """
    module = sys.modules.get(f"{_ROOM}.decorator")
    decorators = [decorator for group in flow._flow_decorators.values() for decorator in group]
    return module is not None and any(isinstance(found, module.ArtifactStoreFlowDecorator) for found in decorators)


def store_in_context() -> StoreSpec | None:
    """The store of the ``with artifact_store_from(...)`` around the caller; in a task with ``@with_artifact_store``,
    the flow's. None where there is neither.

    Raises
    ------
    UsageError
        It is of a type that cannot be read here.
    """
    from async_ckpt.stores.metaflow import artifact_store

    module = sys.modules.get(f"{_ROOM}.context")
    context = module.datastore_context.current_context if module is not None else None
    return None if context is None else artifact_store(context)


def stores_of_reference(reference: Mapping[str, Any] | str) -> list[StoreSpec]:
    """Where to look for a checkpoint outside of a step: where the context says, then where it was saved, then where
    Metaflow is configured to keep things.

    Raises
    ------
    UsageError
        There is no such place.
    """
    return lookup.with_default(store_in_context(), lookup.of_reference(reference))
