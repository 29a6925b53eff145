"""Botocore's signers, told what they would otherwise find out for every request again."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from typing import Any
from urllib.parse import urlsplit

from botocore import UNSIGNED
from botocore.auth import SIGV4_TIMESTAMP, HmacV1Auth, S3SigV4Auth

from ...errors import UsageError

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
#: SHA-256 of no bytes.
NO_CONTENT = hashlib.sha256(b"").hexdigest()


class Headers(dict[str, str]):
    """A request's headers as a signer reads them: a dict, since botocore's own costs as much as all the rest."""

    def get_all(self, name: str) -> list[str]:
        return [self[name]]


class _Request:
    """What a signer needs of a request."""

    def __init__(self, method: str, url: str, headers: Headers, bucket: str) -> None:
        self.method, self.url, self.headers = method, url, headers
        self.auth_path = bucket + urlsplit(url).path
        self.params = self.body = None
        self.context: dict[str, Any] = {}


class _Signer(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """Botocore's signer for S3, with the day's key kept, which takes it longest to make."""

    _kept: tuple[str, str, bytes] = ("", "", b"")

    def payload(self, request: _Request) -> str:
        return str(request.context["payload"])

    def headers_to_sign(self, request: _Request) -> Headers:
        headers: Headers | None = request.context.get("signed")
        if headers is None:
            headers = request.context["signed"] = Headers((k.lower(), v) for k, v in request.headers.items())
        return headers

    def signature(self, string_to_sign: str, request: _Request) -> str:
        secret, day = self.credentials.secret_key, request.context["timestamp"][:8]
        if self._kept[:2] != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region_name, self._service_name, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._kept = secret, day, key
        return hmac.digest(self._kept[2], string_to_sign.encode(), "sha256").hex()

    def _modify_request_before_signing(self, request: _Request) -> None:
        offset_s = request.context["offset_s"]
        if offset_s:
            now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset_s)
            request.context["timestamp"] = now.strftime(SIGV4_TIMESTAMP)
        super()._modify_request_before_signing(request)


class Signing:
    """Signs requests for one region and service.

    Parameters
    ----------
    version : str or object
        Botocore's name of the kind of signature; ``botocore.UNSIGNED``: none.
    region, service : str
        E.g. ``us-east-1`` and ``s3``.
    bucket : str
        ``/<bucket>`` where it is part of the host's name and not of the path: version 2 signs it in any case.

    Raises
    ------
    UsageError
        A kind of signature that is not for single requests, or needs AWS's native library.
    """

    def __init__(self, version: Any, region: str, service: str = "s3", bucket: str = "") -> None:
        self.region, self._bucket = region, bucket
        self._auth: Any = None
        if version is UNSIGNED:
            return
        # By name: with AWS's native library installed, the map has other classes for it.
        kind = _Signer if version in ("s3v4", "v4") else HmacV1Auth if version == "s3" else None
        if kind is None:
            raise UsageError(
                f"Requests cannot be signed with {version!r}", hint="Set signature_version to s3v4, or leave it out"
            )
        self._auth = kind(None, service, region)

    @property
    def signs(self) -> bool:
        return self._auth is not None

    def sign(self, method: str, url: str, headers: Headers, payload: str, credentials: Any, offset_s: float) -> None:
        """Add a signature to the headers of a request, which must name its host.

        Parameters
        ----------
        payload : str
            SHA-256 of the body in hex digits, or ``UNSIGNED_PAYLOAD``.
        credentials : object
            ``access_key``, ``secret_key``, ``token``.
        offset_s : float
            By how many seconds the store's clock is ahead of ours.
        """
        request = _Request(method, url, headers, self._bucket)
        request.context.update(payload=payload, offset_s=offset_s)
        self._auth.credentials = credentials
        self._auth.add_auth(request)


def sha256(data: bytes) -> str:
    """SHA-256 in hex digits, as signatures have it."""
    return hashlib.sha256(data).hexdigest()
