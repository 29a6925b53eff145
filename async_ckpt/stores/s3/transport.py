"""What carries requests: the interface of both transports, the network they cross, and the limits of a request.

``aiohttp_transport.py`` is the one to have. ``boto3_transport.py`` needs nothing that Metaflow does not bring to a pod.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import anyio
from botocore.config import Config as BotoConfig
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.utils import get_environ_proxies

from ...config import Config
from ...errors import StoreError, os_reason

if TYPE_CHECKING:
    from .body import Body

#: Fewer bytes than this within ``stall_s`` are a stall: one byte a minute keeps no connection alive for ever.
_LEAST_BYTES = 1 << 10


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

    #: What the user should know of it; usually nothing.
    notice: str

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


class Timeouts(NamedTuple):
    """Of the phases of a request, in seconds; see ``Config``. ``connect_s`` is the transport's own affair."""

    connect_s: float
    answer_s: float
    stall_s: float


class Certificates(NamedTuple):
    """How a server shows who it is, and how we do.

    Parameters
    ----------
    verify : bool or str
        Whether its certificate is checked, or the file of those to trust.
    said_by : str
        Where the user said so.
    client : str, tuple or None
        Our own certificate: a file, or one of it and one of its key.
    """

    verify: Any
    said_by: str
    client: Any

    def context(self) -> ssl.SSLContext:
        """As botocore makes it; reads files.

        Raises
        ------
        StoreError
            A file is missing or is none of certificates.
        """
        context: ssl.SSLContext = create_urllib3_context()
        try:
            if self.verify is False:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            else:
                context.check_hostname = True
                context.load_verify_locations(get_cert_path(self.verify))
            if self.client:
                context.load_cert_chain(*([self.client] if isinstance(self.client, str) else self.client))
        except OSError as error:  # ssl's errors are of the same kind
            files = [str(self.client)] if self.client else []
            if self.verify is not False:
                files.insert(0, str(get_cert_path(self.verify)))
            raise StoreError(
                f"Cannot read the certificates in {' and '.join(files)}, set by {self.said_by}: {os_reason(error)}",
                hint=f"Correct {self.said_by}, or unset it",
            ) from error
        return context


class Network(NamedTuple):
    """How the store is reached: certificates and proxies, as botocore finds them."""

    certificates: Certificates
    proxies: Mapping[str, str] | None
    proxies_config: Mapping[str, Any] | None

    @classmethod
    def of(cls, config: BotoConfig, params: Mapping[str, Any], session: Any) -> Network:
        """What a client was made with."""
        bundle = session.get_config_variable("ca_bundle")
        spellings = (
            ("METAFLOW_S3_VERIFY_CERTIFICATE or METAFLOW_DATATOOLS_CLIENT_PARAMS", params.get("verify")),
            ("AWS_CA_BUNDLE" if os.environ.get("AWS_CA_BUNDLE") else "ca_bundle in ~/.aws/config", bundle),
            ("REQUESTS_CA_BUNDLE", os.environ.get("REQUESTS_CA_BUNDLE")),
            ("the installation of botocore", True),
        )
        said_by, verify = next((name, value) for name, value in spellings if value is not None)
        return cls(Certificates(verify, said_by, config.client_cert), config.proxies, config.proxies_config)

    def proxy(self, url: str) -> str | None:
        """The proxy for a URL."""
        parts = urlsplit(url)
        if self.proxies is not None:
            return _with_scheme(self.proxies.get(parts.scheme))
        return _environment_proxy(parts.scheme, parts.netloc)


@functools.lru_cache(maxsize=64)
def _environment_proxy(scheme: str, netloc: str) -> str | None:
    return _with_scheme(get_environ_proxies(f"{scheme}://{netloc}").get(scheme))


def _with_scheme(proxy: str | None) -> str | None:
    return f"http://{proxy.removeprefix('//')}" if proxy and "://" not in proxy else proxy or None


#: Makes a transport, in the event loop.
OpenTransport = Callable[[Network, Timeouts, Config], Transport]

#: The oldest release of aiohttp that is taken.
_AIOHTTP = (3, 12)
_REMEDY = "@pypi(packages={'aiohttp': '>=3.12'}), or an image that has it, brings it"


def best_transport(network: Network, timeouts: Timeouts, config: Config) -> Transport:
    """Aiohttp, or where it cannot be used, boto3's connections in threads; its ``notice`` says why."""
    from .boto3_transport import ThreadTransport  # Late: both import this module.

    try:
        from .aiohttp_transport import VERSION, AioTransport
    except ModuleNotFoundError as error:
        why = f"{error.name} is not installed"
    except Exception as error:  # Whatever an installation that was put together by hand may raise.
        why = f"aiohttp cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    else:
        if network.proxies_config:
            why = "proxies_config has settings that only botocore's own connections know"
        elif VERSION < _AIOHTTP:
            why = f"aiohttp {'.'.join(map(str, VERSION))} is installed, which is too old"
        else:
            return AioTransport(network, timeouts, config)
    transport = ThreadTransport(network, timeouts, config)
    transport.notice = f"Uploads go over boto3 in threads: {why}. {_REMEDY}"
    return transport


class PhaseTimer:
    """The limits of one request: ends it when the phase that it is in lasts too long.

    Use it as a context manager around the request, and tell it what happens.

    Raises
    ------
    TimeoutError
        When the block is left because of a limit; says what was waited for.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._scope = anyio.CancelScope()
        self._untold = 0
        self._doing = ""
        self._limit_s = self._since = 0.0

    def __enter__(self) -> PhaseTimer:
        # Until a body is taken nobody tells us that there is a connection.
        self._enter("no answer", self.timeouts.connect_s + self.timeouts.answer_s)
        self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool | None:
        swallow = self._scope.__exit__(kind, error, trace)  # type: ignore[arg-type]
        if self._scope.cancelled_caught:
            raise TimeoutError(f"{self._doing} within {self._limit_s:g} s") from None
        return swallow

    def _enter(self, doing: str, limit_s: float) -> None:
        now = anyio.current_time()
        self._untold = 0
        if doing == self._doing and now < self._since + limit_s / 20:
            return  # Moving a deadline costs as much as reading a piece: a twentieth of it is not missed.
        self._doing, self._limit_s, self._since = doing, limit_s, now
        self._scope.deadline = now + limit_s

    def waits(self, seconds: float) -> None:
        """The next piece is held back on purpose for so long."""
        self._since = 0.0  # Whatever follows counts from then.
        self._scope.deadline = anyio.current_time() + self.timeouts.stall_s + seconds

    def sending(self) -> None:
        """The connection takes the next piece of the body."""
        self._enter("the server took no more of the body", self.timeouts.stall_s)

    def sent(self) -> None:
        """It has taken all of it; the little that lies in buffers goes out within the limit of the answer."""
        self._enter("no answer", self.timeouts.answer_s)

    def answered(self) -> None:
        """The answer's head is there."""
        self._enter("the answer did not go on", self.timeouts.stall_s)

    def received(self, count: int) -> None:
        """So many bytes of the answer's body are there."""
        self._untold += count
        if self._untold >= _LEAST_BYTES:
            self._enter("the answer did not go on", self.timeouts.stall_s)
