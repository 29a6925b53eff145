"""The S3 client of aiobotocore."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.session import get_session
from anyio import to_thread

from ..config import Config
from ..errors import UsageError
from ._s3_settings import Fetched, Opened, client_params, merged_config, prepare
from .base import S3Settings


class ThreadCredentials(AioCredentials):  # type: ignore[misc]  # aiobotocore has no types
    """Credentials that are fetched in a thread; their own ``credential_provider`` of a botocore session."""

    def __init__(self, fetched: Fetched) -> None:
        super().__init__("asked", "for", method="async-ckpt")  # never sent: see get_frozen_credentials
        self._fetched = fetched
        self._lock = asyncio.Lock()

    async def load_credentials(self) -> ThreadCredentials:
        return self

    async def get_frozen_credentials(self) -> Any:
        async with self._lock:  # One thread asks, however many requests wait.
            return self._fetched.get() if self._fetched.is_fresh else await to_thread.run_sync(self._fetched.get)


def make_config(given: Any, config: Config) -> AioConfig:
    """See ``merged_config``."""
    return merged_config(AioConfig, given, config)


async def open_client(stack: AsyncExitStack, settings: S3Settings, config: Config) -> Opened:
    """Make a client in the running loop; ``stack`` closes it.

    Raises
    ------
    UsageError
        ``client_params`` holds something a client does not take.
    """
    params = client_params(settings)
    params["config"] = make_config(params.get("config"), config)
    session = get_session()
    fetched = None
    if settings.credentials is not None:
        fetched = Fetched(settings.credentials)
        session.register_component("credential_provider", ThreadCredentials(fetched))
    try:
        client = await stack.enter_async_context(session.create_client("s3", **params))
    except TypeError as error:
        raise UsageError(
            f"An S3 client cannot be made from these settings: {error}", hint="Check METAFLOW_DATATOOLS_CLIENT_PARAMS"
        ) from error
    prepare(client, config)
    verify = params.get("verify")
    return Opened(
        client, client._request_signer._credentials, fetched.forget if fetched else None,
        session.get_config_variable("ca_bundle") if verify is None else verify,
    )  # fmt: skip
