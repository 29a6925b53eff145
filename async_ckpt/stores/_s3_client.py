"""The S3 client of aiobotocore."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.session import get_session
from anyio import to_thread
from botocore.exceptions import CredentialRetrievalError

from ..config import Config
from ..errors import UsageError
from ._s3_settings import CREDENTIALS_LIFE_S, Opened, client_params, merged_config, prepare
from .base import S3Settings


class ThreadCredentials(AioCredentials):  # type: ignore[misc]  # aiobotocore has no types
    """Credentials from a function that may block: asked in a thread, at most once a minute.

    It is its own ``credential_provider`` of a botocore session.
    """

    def __init__(self, fetch: Callable[[], Any]) -> None:
        super().__init__("asked", "for", method="async-ckpt")  # never sent: see get_frozen_credentials
        self._fetch = fetch
        self._lock = asyncio.Lock()
        self._fetched: Any = None
        self._until = 0.0

    async def load_credentials(self) -> ThreadCredentials:
        return self

    async def get_frozen_credentials(self) -> Any:
        async with self._lock:
            if time.monotonic() >= self._until:
                try:
                    self._fetched = await to_thread.run_sync(self._fetch)
                except Exception as error:
                    # Only the type: the text of a credential process' error may hold what it printed.
                    raise CredentialRetrievalError(
                        provider="Metaflow's S3 client", error_msg=type(error).__name__
                    ) from error
                self._until = time.monotonic() + CREDENTIALS_LIFE_S
            return self._fetched

    def forget(self) -> None:
        """Ask again before the next request: the store found them expired."""
        self._until = 0.0


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
    credentials = None
    if settings.credentials is not None:
        credentials = ThreadCredentials(settings.credentials)
        session.register_component("credential_provider", credentials)
    try:
        client = await stack.enter_async_context(session.create_client("s3", **params))
    except TypeError as error:
        raise UsageError(
            f"An S3 client cannot be made from these settings: {error}", hint="Check METAFLOW_DATATOOLS_CLIENT_PARAMS"
        ) from error
    prepare(client, config)
    verify = params.get("verify")
    return Opened(
        client, client._request_signer._credentials, credentials.forget if credentials else None,
        session.get_config_variable("ca_bundle") if verify is None else verify,
    )  # fmt: skip
