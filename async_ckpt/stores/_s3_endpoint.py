"""Where and how a client of botocore sends its requests, learned from one it prepared, so that others can be made like
it at a tenth of the cost.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from ._s3_http import Address
from ._s3_sigv4 import EMPTY_SHA256, UNSIGNED, Signer, encode_path, encode_query

_PROBE = "async-ckpt-probe"

#: Headers that are made anew for every request, or mean nothing without botocore.
_OWN = frozenset({
    "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "connection", "content-length",
    "expect", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token",
})  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """How requests for a bucket's objects look.

    Parameters
    ----------
    address : Address
        Where to connect.
    host : str
        The ``Host`` header.
    prefix : str
        What stands before an object's name in the path: ``/`` or ``/bucket/``.
    headers : mapping
        Sent, and signed, with each request.
    signer : Signer or None
        None: requests are not signed.
    unsigned_payload : bool
        Whether signatures leave out the content.
    """

    address: Address
    host: str
    prefix: str
    headers: Mapping[str, str]
    signer: Signer | None
    unsigned_payload: bool

    def head(
        self, method: str, name: str, credentials: Any, *, query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None, sha256: str | None = None,
    ) -> bytes:  # fmt: skip
        """A request's first lines, signed.

        Parameters
        ----------
        sha256 : str or None
            Of the content, in hex digits; None: there is none, or it is not signed.
        """
        path, search = self.prefix + encode_path(name), encode_query(query or {})
        every = {"host": self.host, **self.headers, **(headers or {})}
        if self.signer is not None:
            payload = sha256 or (UNSIGNED if self.unsigned_payload else EMPTY_SHA256)
            every |= self.signer.headers(method, path, search, every, payload, credentials)
        lines = "".join(f"{key}: {value}\r\n" for key, value in every.items())
        return f"{method} {path}{'?' if search else ''}{search} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


class _Prepared(Exception):
    """Not an error: how a request is kept from being sent."""

    def __init__(self, request: Any) -> None:
        self.request = request


async def learn(client: Any, bucket: str, verify: Any) -> Endpoint | None:
    """What a client's requests look like; None where they are more than can be made here (a proxy, a client's
    certificate, another kind of signature): then everything has to go through botocore.

    Parameters
    ----------
    verify : bool, str or None
        As botocore's ``create_client`` takes it: whether certificates are checked, or the file of those to trust.
    """

    def keep(request: Any, **_: Any) -> None:
        if urlsplit(request.url).path.endswith(f"/{_PROBE}"):  # Not somebody else's, in this moment.
            raise _Prepared(request)

    config, events = client.meta.config, client.meta.events
    events.register_first("before-send.s3.HeadObject", keep)
    try:
        await client.head_object(Bucket=bucket, Key=_PROBE)
    except _Prepared as prepared:
        request = prepared.request
    finally:
        events.unregister("before-send.s3.HeadObject", keep)
    url = urlsplit(request.url)
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    authorization = headers.get("authorization", "")
    signer = _signer(authorization)
    foreign = [name for name in headers if name.startswith("x-amz-") and name not in _OWN]
    if config.client_cert or config.proxies or get_environ_proxies(request.url) or foreign or url.query:
        return None
    if not url.hostname or not url.path.endswith(f"/{_PROBE}") or (authorization and signer is None):
        return None
    with contextlib.suppress(OSError, ssl.SSLError):  # A bad file of certificates: botocore says what is wrong.
        tls = _tls(verify) if url.scheme == "https" else None
        return Endpoint(
            address=Address(url.hostname, url.port or (443 if tls else 80), tls),
            host=url.netloc.rpartition("@")[2],
            prefix=url.path.removesuffix(_PROBE),
            headers={name: value for name, value in headers.items() if name not in _OWN},
            signer=signer,
            unsigned_payload=(config.s3 or {}).get("payload_signing_enabled") is False,
        )
    return None


def _signer(authorization: str) -> Signer | None:
    """From ``AWS4-HMAC-SHA256 Credential=<key>/<day>/<region>/<service>/aws4_request, …``."""
    if not authorization.startswith("AWS4-HMAC-SHA256 Credential="):
        return None
    scope = authorization.split("Credential=", 1)[1].split(",", 1)[0].split("/")
    return Signer(*scope[-3:-1])


def _tls(verify: Any) -> ssl.SSLContext:
    if verify is False:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    return ssl.create_default_context(cafile=get_cert_path(True if verify is None else verify))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
