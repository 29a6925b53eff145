"""The asynchronous S3 client: the user's settings first, then what makes it fast and predictable."""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.session import get_session
from anyio import to_thread
from botocore.exceptions import CredentialRetrievalError
from botocore.handlers import add_expect_header

from ..config import Config
from ..errors import UsageError
from .base import S3Settings

#: How long credentials are used before their source is asked again. Botocore's own refresh ten minutes or more before
#: they expire, so one minute never sends expired ones.
_CREDENTIALS_LIFE_S = 60.0

_CREDENTIAL_PARAMS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_account_id")


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
                self._until = time.monotonic() + _CREDENTIALS_LIFE_S
            return self._fetched

    def forget(self) -> None:
        """Ask again before the next request: the store found them expired."""
        self._until = 0.0


def make_config(given: Any, config: Config) -> AioConfig:
    """The user's botocore ``Config`` (or a mapping of options, or None), with only what it leaves open filled in."""
    ours = AioConfig(
        # As many as there are requests: none waits for another's connection.
        max_pool_connections=config.max_parts_in_flight + config.files_in_flight,
        connect_timeout=10,
        read_timeout=60,
        tcp_keepalive=True,
        # RetryStore and S3Store retry, and know when to stop.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Botocore's default turns streams into chunked ones, which some stores answer with 411, and fails on ranges.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    if given is None:
        return ours
    return ours.merge(AioConfig(**given) if isinstance(given, Mapping) else given)


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stream(body: Any) -> Any:
    """The aiohttp stream under an answer's body; before aiobotocore 3 the body stands for the answer itself."""
    return getattr(body, "raw_stream", body).content


class Opened(NamedTuple):
    """A client, the credentials it asks for (None: its own affair), and how it verifies certificates."""

    client: Any
    credentials: ThreadCredentials | None
    verify: Any


async def open_client(stack: AsyncExitStack, settings: S3Settings, config: Config) -> Opened:
    """Make a client in the running loop; ``stack`` closes it.

    Raises
    ------
    UsageError
        ``client_params`` holds something a client does not take.
    """
    params = copy.deepcopy(dict(settings.client_params))
    params["config"] = make_config(params.get("config"), config)
    session = get_session()
    credentials = None
    if settings.credentials is not None:
        credentials = ThreadCredentials(settings.credentials)
        session.register_component("credential_provider", credentials)
        for name in _CREDENTIAL_PARAMS:
            params.pop(name, None)
    try:
        client = await stack.enter_async_context(session.create_client("s3", **params))
    except TypeError as error:
        raise UsageError(
            f"An S3 client cannot be made from these settings: {error}", hint="Check METAFLOW_DATATOOLS_CLIENT_PARAMS"
        ) from error
    # A round trip per part, and some stores never answer it.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    url, s3 = client.meta.endpoint_url, client.meta.config.s3 or {}
    if url.startswith("https:") or is_loopback(url) or config.unsigned_payload:
        # Elsewhere the signature is all that guards the content, and costs a second reading of it.
        client.meta.config.s3 = {"payload_signing_enabled": False, **s3}
    verify = params.get("verify")
    return Opened(client, credentials, session.get_config_variable("ca_bundle") if verify is None else verify)
