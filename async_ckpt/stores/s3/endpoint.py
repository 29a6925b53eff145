"""Where a bucket's objects are: learned from a request that botocore prepared, corrected by what the store says."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from botocore import UNSIGNED

from ...errors import StoreError, UsageError
from .answers import Refusal, code_of, error_field, header
from .signing import Signing

#: The name of an object that is asked for, and need not be there.
PROBE = "async-ckpt-probe"

_REDIRECTS = (301, 302, 303, 307, 308)
#: The bucket is in another region, said without a redirect.
_ELSEWHERE = frozenset({
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect",
    "Redirect",
})  # fmt: skip
#: What a server says of a request that was signed for another region, where it names that in its message only.
_EXPECTING = re.compile(r"expecting '([a-z0-9-]+)'")


@dataclass(frozen=True)
class Endpoint:
    """A bucket's address, and the region that requests are signed for.

    Parameters
    ----------
    base : str
        The URL of an object up to the slash before its name.
    bucket : str
        Its name.
    version : str or object
        Botocore's name of the kind of signature; ``botocore.UNSIGNED``: none.
    region, service : str
        What signatures are for.
    """

    base: str
    bucket: str
    version: Any
    region: str
    service: str = "s3"

    @classmethod
    def learn(cls, request: Any, bucket: str, version: Any) -> Endpoint:
        """From a request for ``PROBE`` that a client has prepared.

        Raises
        ------
        UsageError
            It is signed in a way that needs more than a key.
        """
        base = _base(urlsplit(request.url))
        authorization = _text(request.headers.get("Authorization", ""))
        if "AWS4-ECDSA" in authorization or not base.endswith(f"/{PROBE}"):
            raise UsageError(
                f"Requests to {bucket} cannot be made: a multi-region access point needs signatures of another kind",
                hint="Set METAFLOW_DATASTORE_SYSROOT_S3 to the bucket, or to an access point in one region",
            )
        endpoint = cls(base.removesuffix(f"/{PROBE}"), bucket, version if authorization else UNSIGNED, "")
        if authorization.startswith("AWS4-HMAC-SHA256 Credential="):
            scope = authorization.split("Credential=", 1)[1].split(",", 1)[0].split("/")
            return replace(endpoint, region=scope[-3], service=scope[-2])
        return endpoint

    @property
    def host(self) -> str:
        """The ``Host`` header."""
        return urlsplit(self.base).netloc

    @staticmethod
    def path(name: str) -> str:
        """What follows the base in an object's URL, from its name in the bucket."""
        return f"/{quote(name, safe='/-_.~')}"

    @functools.cached_property
    def signing(self) -> Signing:
        """What signs requests that go here; it remembers the day's key."""
        in_host = "" if urlsplit(self.base).path.endswith(f"/{self.bucket}") else f"/{self.bucket}"
        return Signing(self.version, self.region, self.service, in_host)

    def at(self, location: str, path: str) -> Endpoint | None:
        """Where the bucket is, from the URL that a request for ``path`` is sent to (or a host alone); None: it is none.

        Raises
        ------
        StoreError
            It leads from TLS to a connection that everybody can read.
        """
        mine = urlsplit(self.base)
        theirs = urlsplit(location if "://" in location else f"{mine.scheme}://{location}")
        if theirs.scheme not in ("http", "https") or not theirs.hostname:
            return None
        if (mine.scheme, theirs.scheme) == ("https", "http"):
            raise StoreError(
                f"The store sends us to {theirs.netloc} over a connection without encryption", where=self.base,
                hint="Set METAFLOW_S3_ENDPOINT_URL to where the bucket is",
            )  # fmt: skip
        path = path.partition("?")[0]
        if theirs.path.strip("/"):
            # What stands before the request's own path is the bucket's address.
            base = _base(theirs).rstrip("/")
            if not base.endswith(path.rstrip("/") or f"/{self.bucket}"):
                return None
            return replace(self, base=base.removesuffix(path.rstrip("/")))
        in_host = theirs.hostname.startswith(f"{self.bucket.lower()}.s3")
        return replace(self, base=_base(theirs).rstrip("/") + ("" if in_host else f"/{self.bucket}"))


def _base(url: SplitResult) -> str:
    """A URL without who asks, its query, and a port that says nothing: as botocore signs it."""
    port = f":{url.port}" if url.port not in (None, {"http": 80, "https": 443}.get(url.scheme)) else ""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}{port}{url.path}"


def is_elsewhere(error: Refusal) -> bool:
    """Whether an answer says that the bucket is not where the request went."""
    code, status = code_of(error)
    named = bool(header(error, "x-amz-bucket-region")) and code in ("400", "BadRequest")
    return status in _REDIRECTS or code in _ELSEWHERE or named


def region_in(error: Refusal) -> str:
    """The region that an answer names; empty where it names none."""
    said = header(error, "x-amz-bucket-region") or error_field(error, "Region")
    match = _EXPECTING.search(error_field(error, "Message"))
    return said or (match[1] if match else "")


def endpoint_in(error: Refusal) -> str:
    """The host that an answer names as the bucket's; empty where it names none."""
    return error_field(error, "Endpoint")


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
