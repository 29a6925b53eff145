"""What Metaflow is configured with, for the stores: its datastore, and everything its S3 client was made with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from metaflow import metaflow_config
from metaflow.plugins import DATASTORES
from metaflow.plugins.datatools.s3.s3util import get_s3_client

from ..errors import UsageError
from .base import S3Settings, StoreSpec

#: Metaflow's names of datastores and our kinds of stores.
_KINDS = {"local": "local", "s3": "metaflow-s3"}

#: Options of botocore's Config that a client provider may have set, and that hold for an asynchronous client as well.
_OPTIONS = (
    "s3", "proxies", "proxies_config", "client_cert", "connect_timeout", "read_timeout", "max_pool_connections",
    "use_dualstack_endpoint", "use_fips_endpoint",
)  # fmt: skip


def s3_settings() -> S3Settings:
    """Settings that make an asynchronous client the twin of Metaflow's own.

    Metaflow's client is built, so every way of configuring it counts: METAFLOW_S3_ENDPOINT_URL,
    METAFLOW_DATATOOLS_CLIENT_PARAMS, METAFLOW_S3_SERVER_SIDE_ENCRYPTION, a client provider of one's own. Credentials
    stay with it: they are asked for when a request is signed, and refresh the way it refreshes them.

    Raises
    ------
    MetaflowException
        From Metaflow: boto3 is missing, or its configuration is not valid.
    """
    params = copy.deepcopy(metaflow_config.DATATOOLS_CLIENT_PARAMS)
    client = _client()
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
        credentials=_open_credentials,
        server_side_encryption=metaflow_config.S3_SERVER_SIDE_ENCRYPTION or None,
    )


def _client() -> Any:
    """A new client of Metaflow's, in a session of its own. A provider changes the parameters that it gets."""
    return get_s3_client(s3_client_params=copy.deepcopy(metaflow_config.DATATOOLS_CLIENT_PARAMS))[0]


def _open_credentials() -> Callable[[], Any]:
    """A new client of Metaflow's, which looks for its credentials again; see ``OpenCredentials``."""
    credentials = _client()._request_signer._credentials
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
    root = None
    if kind in _KINDS:
        storage = next(storage for storage in DATASTORES if kind == storage.TYPE)
        root = storage.get_datastore_root_from_config(lambda *_args, **_kwargs: None, create_on_absent=True)
    return spec_for(kind, root)


def spec_for(ds_type: str, root: str | None) -> StoreSpec:
    """The store at one of Metaflow's datastores, by its type and root as a ``FlowDataStore`` names them.

    Raises
    ------
    UsageError
        Checkpoints cannot be kept in that type of datastore, or the root is not set.
    """
    if ds_type not in _KINDS:
        raise UsageError(
            f"Checkpoints cannot be kept in the datastore {ds_type!r}",
            hint=f"Use one of these with --datastore: {', '.join(_KINDS)}",
        )
    if not root:
        raise UsageError(
            f"The datastore {ds_type!r} has no root", hint=f"Set METAFLOW_DATASTORE_SYSROOT_{ds_type.upper()}"
        )
    return StoreSpec(_KINDS[ds_type], root)


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
