"""What Metaflow is configured with, for the stores: its datastore, and everything its S3 client was made with.

A flow may have another store: the one that ``@with_artifact_store`` names, whose settings metaflow-checkpoint hands on
as ``{"type", "config"}``. They may hold credentials, so they stay where Metaflow's processes have them: in a variable
of the environment that a task's subprocesses inherit, the agent and its uploader among them. A ``StoreSpec`` that is
written down names the variable.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from metaflow import metaflow_config
from metaflow.plugins import DATASTORES
from metaflow.plugins.datatools.s3.s3util import get_s3_client

from ..config import Config
from ..errors import UsageError
from .base import Access, Store, StoreSpec
from .retry import RetryStore
from .s3 import S3Settings

#: The types of Metaflow's datastores and of metaflow-checkpoint's artifact stores, and the kind of store (see
#: ``open_store``) in which the checkpoints of each are kept.
DATASTORE_KINDS = {"local": "local", "s3": "metaflow-s3", "s3-compatible": "metaflow-s3", "coreweave": "metaflow-s3"}

#: Where metaflow-checkpoint puts the settings of a flow's artifact store, as JSON, when a flow starts and in its tasks.
ENV_ARTIFACT_STORE = "METAFLOW_CHECKPOINT_ARTIFACT_STORE_CONFIG"

_S3_KEYS = {"role_arn": str, "session_vars": Mapping, "client_params": Mapping}
#: Options of botocore's Config that a client provider may have set, and that hold for our requests as well.
_OPTIONS = (
    "s3", "proxies", "proxies_config", "client_cert", "connect_timeout", "read_timeout", "max_pool_connections",
    "use_dualstack_endpoint", "use_fips_endpoint",
)  # fmt: skip


def open_store(spec: StoreSpec, config: Config) -> Store:
    """A store on S3 that is opened as Metaflow would open it, with retries.

    METAFLOW_S3_RETRY_COUNT counts unless ``config.store_attempts`` was set.

    Raises
    ------
    UsageError
        Boto3 is missing, or the root is no address on S3.
    """
    try:
        from .s3.store import S3Store  # Late: whoever only asks for the datastore needs no botocore.
    except ImportError as error:
        raise UsageError(
            f"A checkpoint store on S3 needs boto3: {error}", where=spec.root, hint="pip install boto3"
        ) from error
    if config.store_attempts == Config.store_attempts:
        config = dataclasses.replace(config, store_attempts=s3_retry_attempts())
    # The settings are asked for at the first request, since that may fail.
    return RetryStore(S3Store(spec.root, functools.partial(s3_settings, spec), config), config)


def s3_settings(spec: StoreSpec | None = None) -> S3Settings:
    """Settings with which requests go as those of the client that Metaflow would use for a store.

    Metaflow's client is built, so every way of configuring it counts: METAFLOW_S3_ENDPOINT_URL,
    METAFLOW_DATATOOLS_CLIENT_PARAMS, METAFLOW_S3_SERVER_SIDE_ENCRYPTION, a client provider of one's own. Credentials
    stay with it: they are asked for when a request is signed, and refresh the way it refreshes them.

    Parameters
    ----------
    spec : StoreSpec, optional
        The store; its role, session and parameters of the client go before Metaflow's own.

    Raises
    ------
    MetaflowException
        From Metaflow: boto3 is missing, or its configuration is not valid.
    UsageError
        How the store is opened is not known in this process.
    """
    access = access_of(spec) if spec is not None else Access()
    params = _params(access)
    try:
        client = _client(access)
    except (TypeError, ValueError, KeyError) as error:
        if spec is None or access == Access():
            raise
        raise UsageError(
            f"An S3 client cannot be made with the settings of this artifact store: {error}", where=spec.root,
            hint="Check role_arn, session_vars and client_params in its config",
        ) from error  # fmt: skip
    if not params.get("endpoint_url") and "amazonaws.com" not in client.meta.endpoint_url:
        params["endpoint_url"] = client.meta.endpoint_url
    if client.meta.region_name and client.meta.region_name != "aws-global":
        params.setdefault("region_name", client.meta.region_name)
    verify = _verify(client)
    if verify is not None:
        params.setdefault("verify", verify)
    params["config"] = _options(params.get("config"), client.meta.config)
    return S3Settings(
        client_params=params,
        credentials=functools.partial(_open_credentials, access),
        server_side_encryption=metaflow_config.S3_SERVER_SIDE_ENCRYPTION or None,
    )


def _params(access: Access) -> dict[str, Any]:
    """The parameters of the client that Metaflow makes: either a store's own, or those of its configuration."""
    return copy.deepcopy(dict(access.client_params or metaflow_config.DATATOOLS_CLIENT_PARAMS))


def _client(access: Access) -> Any:
    """A new client of Metaflow's, in a session of its own. A provider changes the parameters that it gets."""
    session_vars = dict(access.session_vars) if access.session_vars else None
    return get_s3_client(access.role_arn, session_vars, _params(access))[0]


def _open_credentials(access: Access) -> Callable[[], Any]:
    """A new client of Metaflow's, which looks for its credentials again; see ``OpenCredentials``."""
    credentials = _client(access)._request_signer._credentials
    return credentials.get_frozen_credentials if credentials is not None else lambda: None


def s3_retry_attempts() -> int:
    """Attempts at one request as METAFLOW_S3_RETRY_COUNT has them, the first included."""
    return int(metaflow_config.S3_RETRY_COUNT) + 1


def default_spec() -> StoreSpec:
    """The datastore that Metaflow uses by default.

    Raises
    ------
    UsageError
        As ``spec_for``, or it has no root.
    """
    kind = metaflow_config.DEFAULT_DATASTORE
    storage = next((found for found in DATASTORES if kind == found.TYPE and kind in DATASTORE_KINDS), None)
    # Whoever reads must not make a datastore.
    root = storage and storage.get_datastore_root_from_config(lambda *_args, **_kwargs: None, create_on_absent=False)
    return spec_for(kind, root)


def spec_for(ds_type: str, root: str | None) -> StoreSpec:
    """The store at one of Metaflow's datastores, by its type and root as a ``FlowDataStore`` names them.

    Raises
    ------
    UsageError
        Checkpoints cannot be kept in that type of datastore, or the root is not set.
    """
    if ds_type not in DATASTORE_KINDS:
        raise UsageError(
            f"Checkpoints cannot be kept in the datastore {ds_type!r}",
            hint="Use one of these with --datastore: local, s3; or @with_artifact_store of such a type",
        )
    kind = DATASTORE_KINDS[ds_type]
    if not root:
        name = "LOCAL" if kind == "local" else "S3"
        raise UsageError(f"The datastore {ds_type!r} has no root", hint=f"Set METAFLOW_DATASTORE_SYSROOT_{name}")
    return StoreSpec(kind, absolute(root))


def _options(given: Any, resolved: Any) -> dict[str, Any]:
    """Options of the user's Config (or mapping), and those a provider set on the client it made."""
    options = dict(getattr(given, "_user_provided_options", given) or {})
    default = type(resolved)()
    for name in _OPTIONS:
        value = getattr(resolved, name, None)
        if value is not None and value != getattr(default, name, None):
            options.setdefault(name, value)
    if not isinstance(resolved.signature_version, str):  # botocore.UNSIGNED: a public bucket
        options.setdefault("signature_version", resolved.signature_version)
    return options


def _verify(client: Any) -> Any:
    """False, or a file of certificates, if the client was made with one; None where that cannot be told."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    verify = getattr(session, "_verify", None)
    return None if verify is True else verify


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
