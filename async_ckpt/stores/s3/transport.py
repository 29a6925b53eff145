"""The interface of the two transports that carry requests."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from .body import Body
from .phases import PhaseTimer


class SignedRequest(NamedTuple):
    """One request as it is sent, signature and all.

    Parameters
    ----------
    url : str
        Percent-encoded; it is not encoded again.
    body : bytes, Body or None
        Its length stands in the headers.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | Body | None


class Incoming(Protocol):
    """An answer whose head is there. Header names are in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def readany(self) -> bytes:
        """The next bytes of the body, as soon as there are some; none at its end.

        Raises
        ------
        OSError, botocore's HTTPClientError or aiohttp's ClientError
            The connection broke, or the body is shorter than announced.
        """


class Dropped(ConnectionError):
    """The connection broke before there was an answer; the cause is the library's error. A kept one that the server
    has given up in this moment breaks in this way.
    """


class Transport(Protocol):
    """Sends requests over connections that it keeps, in one event loop."""

    def send(self, request: SignedRequest, timer: PhaseTimer) -> AbstractAsyncContextManager[Incoming]:
        """Send a request; the connection is kept if the answer was read to its end within the block.

        Redirects are not followed and nothing is sent twice.

        Raises
        ------
        Dropped
            See there.
        OSError, or an error of the library
            Nobody answers, or as ``Incoming.readany``.
        """

    def drop_connections(self) -> None:
        """Use none of the connections again that are there now: one of them was dead."""

    async def aclose(self) -> None:
        """Close all connections."""
