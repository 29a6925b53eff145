"""What both kinds of S3 clients are made with: the settings of the user, then what makes them fast and predictable."""

from __future__ import annotations

import copy
import ipaddress
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from botocore.config import Config as BotoConfig
from botocore.exceptions import CredentialRetrievalError
from botocore.handlers import add_expect_header

from ..config import Config
from .base import S3Settings

C = TypeVar("C", bound=BotoConfig)

#: How long credentials are used before their source is asked again. Botocore's own refresh ten minutes or more before
#: they expire, so one minute never sends expired ones.
_CREDENTIALS_LIFE_S = 60.0

_CREDENTIAL_PARAMS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_account_id")


class Fetched:
    """Credentials from a function that may block, asked at most once a minute, by whichever thread comes first."""

    def __init__(self, fetch: Callable[[], Any]) -> None:
        self._fetch, self._lock = fetch, threading.Lock()
        self._last: Any = None
        self._until = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether ``get`` returns at once."""
        return time.monotonic() < self._until

    def get(self) -> Any:
        """What the function returned.

        Raises
        ------
        CredentialRetrievalError
            It failed.
        """
        with self._lock:
            if not self.is_fresh:
                try:
                    self._last = self._fetch()
                except Exception as error:
                    # Only the type: the text of a credential process' error may hold what it printed.
                    raise CredentialRetrievalError(
                        provider="Metaflow's S3 client", error_msg=type(error).__name__
                    ) from error
                self._until = time.monotonic() + _CREDENTIALS_LIFE_S
            return self._last

    def forget(self) -> None:
        """Ask again before the next request: the store found them expired."""
        self._until = 0.0


class Opened(NamedTuple):
    """A client whose calls are awaited, and what goes with it.

    Parameters
    ----------
    client : object
        Of aiobotocore, or one that does as it does.
    signing : object or None
        What requests are signed with: ``await signing.get_frozen_credentials()``.
    forget : callable or None
        Ask for credentials again before the next request; None: they are the client's own affair.
    verify : bool, str or None
        As botocore's ``create_client`` takes it: how certificates are verified.
    notice : str
        What the user should know of it; usually nothing.
    """

    client: Any
    signing: Any
    forget: Callable[[], None] | None
    verify: Any
    notice: str = ""


#: Makes a client in the running loop; the stack closes it. Raises ``UsageError`` where settings are not a client's.
OpenClient = Callable[[AsyncExitStack, S3Settings, Config], Awaitable[Opened]]


def merged_config(kind: type[C], given: Any, config: Config) -> C:
    """The user's botocore ``Config`` (or a mapping of options, or None), with only what it leaves open filled in.

    Parameters
    ----------
    kind : type
        Botocore's ``Config`` or a class made from it.
    """
    ours = {
        # As many as there are requests: none waits for another's connection.
        "max_pool_connections": config.max_parts_in_flight + config.files_in_flight,
        "connect_timeout": 10,
        "read_timeout": 60,
        "tcp_keepalive": True,
        # RetryStore and S3Store retry, and know when to stop.
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Botocore's default turns streams into chunked ones, which some stores answer with 411, and fails on ranges.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    # A pod's botocore may be from before some of them.
    made: C = kind(**{name: value for name, value in ours.items() if name in BotoConfig.OPTION_DEFAULTS})
    if given is None:
        return made
    merged: C = made.merge(kind(**given) if isinstance(given, Mapping) else given)
    return merged


def client_params(settings: S3Settings) -> dict[str, Any]:
    """A copy of the parameters of ``create_client``, without keys where credentials are asked for."""
    params = copy.deepcopy(dict(settings.client_params))
    if settings.credentials is not None:
        for name in _CREDENTIAL_PARAMS:
            params.pop(name, None)
    return params


def prepare(client: Any, config: Config) -> None:
    """What a new client of either kind has to be told."""
    # A round trip per part, and some stores never answer it.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    url, s3 = client.meta.endpoint_url, client.meta.config.s3 or {}
    if url.startswith("https:") or is_loopback(url) or config.unsigned_payload:
        # Elsewhere the signature is all that guards the content, and costs a second reading of it.
        client.meta.config.s3 = {"payload_signing_enabled": False, **s3}


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stream(body: Any) -> Any:
    """The stream under an answer's body; before aiobotocore 3 the body stands for the answer itself."""
    return getattr(body, "raw_stream", body).content
