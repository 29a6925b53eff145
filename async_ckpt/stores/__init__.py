"""Where checkpoints end up. To add a store: one file here, one case in ``open_store``, one subclass of the suite."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from ..config import Config
from ..errors import UsageError
from .base import S3Settings, Store, StoreSpec

__all__ = ["open_store"]


def open_store(spec: StoreSpec, config: Config) -> Store:
    """Make the store that ``spec`` describes, with retries. Nothing is connected yet.

    Only the libraries of that kind of store are imported; ``metaflow-s3`` imports Metaflow and may take a second.

    For S3, aiobotocore is used where it is installed and fits the installed botocore; else botocore's own client in
    threads does the same, and the store's ``notice`` says why, once it is connected.

    Parameters
    ----------
    spec : StoreSpec
        For ``s3``, ``options`` may hold ``client_params`` (of botocore's ``create_client``; ``config`` as a mapping)
        and ``server_side_encryption``.
    config : Config
        Limits. For ``metaflow-s3``, METAFLOW_S3_RETRY_COUNT counts unless ``store_attempts`` was set.

    Raises
    ------
    UsageError
        The kind or the root is not known here, or what it needs is not installed.
    """
    # Imported late: the agent's control plane reads specifications with the standard library alone.
    from .retry import RetryStore

    if spec.kind == "local":
        from .local import LocalStore

        return RetryStore(LocalStore(spec.root, config), config)
    if spec.kind not in ("s3", "metaflow-s3"):
        raise UsageError(
            f"There is no store of the kind {spec.kind!r}", where=spec.root, hint="Use local, s3 or metaflow-s3"
        )
    try:
        from .s3.store import S3Store
    except ImportError as error:
        raise UsageError(
            f"A checkpoint store on S3 needs boto3: {error}", where=spec.root, hint="pip install boto3"
        ) from error
    if spec.kind == "metaflow-s3":
        from .metaflow import s3_retry_attempts, s3_settings

        # Asked for at the first request: it may fail.
        settings: S3Settings | Callable[[], S3Settings] = functools.partial(s3_settings, spec)
        if config.store_attempts == Config.store_attempts:
            config = dataclasses.replace(config, store_attempts=s3_retry_attempts())
    else:
        settings = S3Settings(
            client_params=spec.options.get("client_params") or {},
            server_side_encryption=spec.options.get("server_side_encryption"),
        )
    return RetryStore(S3Store(spec.root, settings, config), config)
