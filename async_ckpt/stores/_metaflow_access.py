"""The store that ``@with_artifact_store`` names, as metaflow-checkpoint hands its settings on: ``{"type", "config"}``.

They may hold credentials, so they stay where Metaflow's processes have them: in an environment variable that a task's
subprocesses inherit, the agent and its uploader among them. A ``StoreSpec`` that is written down names the variable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .base import Access, StoreSpec

#: The types of Metaflow's datastores and of metaflow-checkpoint's artifact stores, and the kind of store (see
#: ``open_store``) in which the checkpoints of each are kept.
DATASTORE_KINDS = {"local": "local", "s3": "metaflow-s3", "s3-compatible": "metaflow-s3", "coreweave": "metaflow-s3"}

#: Where metaflow-checkpoint puts the settings of a flow's artifact store, as JSON, when a flow starts and in its tasks.
ENV_ARTIFACT_STORE = "METAFLOW_CHECKPOINT_ARTIFACT_STORE_CONFIG"

_S3_KEYS = {"role_arn": str, "session_vars": Mapping, "client_params": Mapping}


def artifact_store(context: Any) -> StoreSpec:
    """The store of an artifact store's settings.

    Parameters
    ----------
    context : mapping
        ``type`` and ``config``, whose keys are ``root`` and, for S3, ``role_arn``, ``session_vars``, ``client_params``.

    Raises
    ------
    UsageError
        It cannot be served here, or some of it would be ignored; names types and keys, never a value of ``config``
        but ``root``.
    """
    kind, config = (context.get("type"), context.get("config")) if isinstance(context, Mapping) else (None, None)
    if kind not in DATASTORE_KINDS:
        raise UsageError(
            f"Checkpoints cannot be kept in an artifact store of the type {kind!r}",
            hint="Use type='s3' (also for what speaks its protocol, by endpoint_url in client_params) or 'local'. Where"
            " it has to be this one, uninstall metaflow-async-ckpt: metaflow-checkpoint serves @checkpoint then",
        )
    if not isinstance(config, Mapping):
        raise UsageError(
            f"The config of an artifact store is a dict, not of the type {type(config).__name__}",
            hint="@with_artifact_store(type='s3', config={'root': 's3://bucket/prefix'})",
        )
    root, s3 = config.get("root"), DATASTORE_KINDS[kind] == "metaflow-s3"
    if not isinstance(root, str) or not root or s3 is not root.startswith("s3://"):
        example = "s3://bucket/prefix" if s3 else "/a/directory"
        raise UsageError(
            f"An artifact store of the type {kind!r} cannot have the root {root!r}",
            hint=f"Set 'root' in its config, e.g. {example!r}",
        )
    allowed = _S3_KEYS if s3 else {}
    wrong = sorted(str(key) for key in config if key != "root" and key not in allowed)
    wrong += [key for key, form in allowed.items() if not isinstance(config.get(key), (form, type(None)))]
    if wrong:
        known = ", ".join(["root (text)", *(["role_arn (text)", "session_vars, client_params (dicts)"] if s3 else [])])
        raise UsageError(
            f"The config of an artifact store of the type {kind!r} has what cannot be used: {', '.join(wrong)}",
            where=root, hint=f"It may have {known}",
        )  # fmt: skip
    if not s3:
        return StoreSpec(DATASTORE_KINDS[kind], absolute(root))
    access = Access(config.get("role_arn"), config.get("session_vars"), config.get("client_params"))
    return StoreSpec(DATASTORE_KINDS[kind], root.rstrip("/"), {"access_from": ENV_ARTIFACT_STORE}, access)


def absolute(root: str) -> str:
    """The root of a store that is a directory or a file; a step may change its working directory."""
    return root if "://" in root else os.path.abspath(root)


def access_of(spec: StoreSpec) -> Access:
    """How to open a store: as its specification knows, or the variable that it names.

    Raises
    ------
    UsageError
        The variable is not set here, or is about another store.
    """
    name = spec.options.get("access_from")
    if spec.access is not None or name is None:
        return spec.access or Access(client_params=spec.options.get("client_params"))
    text = os.environ.get(name)
    hint = f"Run this where the flow's own processes run, or set {name} as they have it"
    if not text:
        raise UsageError(f"How to open this store stands in {name}, which is not set", where=spec.root, hint=hint)
    try:
        found = artifact_store(json.loads(text))
    except ValueError:  # The text may hold secrets: no error shows it.
        raise UsageError(f"{name} holds no settings of an artifact store", where=spec.root, hint=hint) from None
    if found.root != spec.root:
        raise UsageError(f"{name} is about {found.root}, not about this store", where=spec.root, hint=hint)
    return found.access or Access()
