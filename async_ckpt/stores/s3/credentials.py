"""The credentials that requests are signed with. Their source is asked again if the store refuses them.

The source is botocore's own chain in a session of its own (files, environment, ``credential_process``, web identity,
SSO, the machine's metadata), or Metaflow's client. Both remember what they found, and some what they did not find; so
after a failure or a refusal the next question goes to a new session.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
from botocore.credentials import Credentials as Static
from botocore.exceptions import CredentialRetrievalError
from botocore.session import get_session

from ...config import CREDENTIALS_AMBIGUOUS_S, CREDENTIALS_LIFE_S, FAILURE_SHARED_S
from ...errors import CheckpointError
from ...system.concurrency import in_thread
from . import OpenCredentials

T = TypeVar("T")

#: What may be a secret: a long run of letters and digits in which both occur.
_SECRET = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z+/=_]*\d)(?=[\d+/=_]*[A-Za-z])[A-Za-z0-9+/=_]{20,}")
_MAX_WORDS = 300


class Credentials:
    """Credentials for requests, in one event loop.

    Parameters
    ----------
    source : callable
        Opens the source; see ``OpenCredentials``. Called in a thread, as is what it returns.
    timeout_s : float
        How long the source may take to answer, in seconds.
    """

    def __init__(self, source: OpenCredentials, timeout_s: float) -> None:
        self._open, self._timeout_s = source, timeout_s
        self._ask: Callable[[], Any] | None = None
        self._lock = anyio.Lock()
        self._last: Any = None
        self._asked = self._until = 0.0
        self._failure: CredentialRetrievalError | None = None
        #: The last ones that the store took, and those that it refused.
        self._accepted: Any = None
        self._refused: Any = None

    async def get(self) -> Any:
        """Credentials with ``access_key``, ``secret_key`` and ``token``.

        Raises
        ------
        CredentialRetrievalError
            The source failed, has none, or did not answer in time; in its own words, without what may be a secret.
        """
        if time.monotonic() < self._until:
            return self._last
        async with self._lock:  # One thread asks, however many requests wait.
            if time.monotonic() >= self._until:
                if self._failure is not None and time.monotonic() < self._asked + FAILURE_SHARED_S:
                    raise self._failure
                try:
                    self._last, self._failure = await self._fetch(), None
                except CredentialRetrievalError as error:
                    if self._last is None or self._last == self._refused:
                        self._asked, self._failure = time.monotonic(), error
                        raise
                    # What the store still takes is good enough; the source is asked again in a minute.
                self._asked = time.monotonic()
                self._until = self._asked + CREDENTIALS_LIFE_S
        return self._last

    async def _fetch(self) -> Any:
        def fetch() -> Any:
            ask = self._ask or self._open()
            found = ask()
            if found is None:
                raise LookupError("no source has any")
            self._ask = ask
            return found

        try:
            return await asked(fetch, self._timeout_s, "their source", (self._last,))
        except CredentialRetrievalError:
            self._ask = None
            raise

    def accepted(self, used: Any) -> None:
        """The store has taken a request that was signed with these."""
        self._accepted = used
        if self._refused == used:
            self._refused = None

    def refuse(self, used: Any, *, ambiguous: bool = False) -> bool:
        """The store refused a request that was signed with these: the next ``get`` asks a new session.

        Parameters
        ----------
        ambiguous : bool
            Perhaps it was not because of them. Then a new session is asked only now and then, and False returned else.
        """
        if self._last == used:
            now = time.monotonic()
            if ambiguous and now - self._asked < CREDENTIALS_AMBIGUOUS_S:
                return False
            self._ask, self._until = None, 0.0
        if not ambiguous:
            self._refused = used
        return True

    def were_good(self, used: Any) -> bool:
        """Whether the store has taken these before: then others are on their way, most likely."""
        return bool(self._accepted == used)


async def asked(function: Callable[[], T], timeout_s: float, provider: str, known: Sequence[Any] = ()) -> T:
    """What a function of somebody else's returns that may block, raise anything, or never return.

    Parameters
    ----------
    provider : str
        What it is to the user.
    known : sequence
        Credentials that its words must not show.

    Raises
    ------
    CredentialRetrievalError
        It failed, or did not return in time; in its own words, without what may be a secret.
    """
    try:
        with anyio.move_on_after(timeout_s):
            return await in_thread(function)
        text = f"no answer within {timeout_s:g} s"
    except CheckpointError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in (getattr(keys, name, None) for keys in known for name in ("secret_key", "token")):
            text = text.replace(secret, "***") if secret else text
    # Without its cause, whose words are not masked.
    raise CredentialRetrievalError(provider=provider, error_msg=_SECRET.sub("***", text)[:_MAX_WORDS]) from None


def botocore_chain(params: Mapping[str, Any]) -> OpenCredentials:
    """Botocore's chain of sources; or the keys in the parameters of a client, where they are given."""

    def open_chain() -> Callable[[], Any]:
        if params.get("aws_access_key_id"):
            found: Any = Static(
                params["aws_access_key_id"], params.get("aws_secret_access_key"), params.get("aws_session_token")
            )
        else:
            found = get_session().get_credentials()
        return found.get_frozen_credentials if found is not None else lambda: None

    return open_chain
