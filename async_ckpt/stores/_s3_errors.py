"""Errors of botocore, aiohttp and the socket below them, in this library's words; mapped here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProxyConnectionError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from ..errors import CheckpointError, NotFound, StoreError, TransientStoreError

try:
    from aiohttp import ClientError as AioClientError
    from aiohttp import ClientSSLError as AioSslError
except ImportError:  # Without aiobotocore, botocore has errors of its own for all of them.
    AioClientError = AioSslError = ClientError


class StartOver(StoreError):
    """This request is of no use any more, but the whole call, begun anew, may succeed."""


# "400" is all that an answer to HEAD, which has no body, says of an expired token.
_TRANSIENT_CODES = frozenset({
    "400", "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "ConnectionError", "ExpiredToken",
    "ExpiredTokenException", "IncompleteBody", "InternalError", "InternalFailure", "LimitExceededException",
    "OperationAborted", "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded",
    "RequestThrottled", "RequestThrottledException", "RequestTimeout", "RequestTimeoutException", "ServerBusy",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "ThrottledException",
    "TokenRefreshRequired", "TooManyRequestsException", "TransactionInProgressException",
    "XAmzContentSHA256Mismatch",
})  # fmt: skip
# Of botocore's own errors, those that speak of the network; all others speak of settings and arguments.
_BROKEN = (BotoConnectionError, HTTPClientError, ResponseStreamingError, IncompleteReadError, ResponseParserError)
_EXPIRED_CODES = frozenset({"400", "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_MISSING_CODES = frozenset({"NoSuchKey", "NotFound", "404"})

_REGION = "Set AWS_DEFAULT_REGION, or region_name in METAFLOW_DATATOOLS_CLIENT_PARAMS, to the bucket's region"
_KEYS = "Check the access key: environment, ~/.aws/credentials, or the role the task runs with"
_ALLOW = (
    "Allow s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload on this prefix"
    " for the role the task runs with"
)
_ENDPOINT = "Check METAFLOW_S3_ENDPOINT_URL: is it an S3 endpoint?"
_PROXY = "Check HTTPS_PROXY and NO_PROXY"
_HINTS = {
    "AccessDenied": _ALLOW,
    "AccountProblem": "Ask the owner of the account",
    "AllAccessDisabled": "Ask the owner of the bucket",
    "403": _ALLOW + "; without s3:ListBucket a missing object reads as forbidden, too",
    "AuthorizationHeaderMalformed": _REGION,
    "EntityTooLarge": "Save with smaller files: the store limits the size of one object",
    "ExpiredToken": "The session token has expired: log in again, or use a role that renews it by itself",
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": _KEYS,
    "InvalidBucketName": "Check the bucket in METAFLOW_DATASTORE_SYSROOT_S3",
    "InvalidRequest": "If the bucket demands checksums (object lock), set METAFLOW_DATATOOLS_CLIENT_PARAMS to"
    ' {"config": {"request_checksum_calculation": "when_supported"}}',
    "InvalidToken": _KEYS,
    "NoSuchBucket": "Create the bucket, or correct METAFLOW_DATASTORE_SYSROOT_S3 and METAFLOW_S3_ENDPOINT_URL",
    "PermanentRedirect": _REGION,
    "QuotaExceeded": "Free some space in the bucket or raise its quota",
    "RequestTimeTooSkewed": "Set this machine's clock",
    "SignatureDoesNotMatch": "Check the secret key, and that no proxy changes requests",
    "XMinioStorageFull": "Free some space in the store",
}
_START_OVER = {
    "InvalidPart": "Something else writes to the same upload",
    "NoSuchUpload": "Check that no lifecycle rule aborts uploads that are not old",
    "InvalidRange": "Something replaced the object while it was read",
}

_USER_INFO = re.compile(r"://[^/@\s]*@")


@contextlib.contextmanager
def mapped(what: str, where: str) -> Iterator[None]:
    """Map whatever the block raises; ``what`` begins the sentence, as in "Cannot read s3://…".

    Raises
    ------
    NotFound, TransientStoreError, StoreError
        In place of the errors of the libraries underneath.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ClientError, BotoCoreError, ResponseParserError, AioClientError, OSError, EOFError) as error:
        raise map_error(error, what, where) from error
    except asyncio.TimeoutError as error:  # not an OSError before Python 3.11
        raise map_error(error, what, where) from error
    except KeyError as error:
        raise StoreError(f"{what}: the answer has no {error}", where=where, hint=_ENDPOINT) from error
    except ValueError as error:  # botocore's for an endpoint that is no URL, aiohttp's for headers it will not send
        raise StoreError(f"{what}: {_clean(error)}", where=where, hint=_ENDPOINT) from error


def expired(error: BaseException | None) -> bool:
    """Whether ``error`` comes from a session token that has expired."""
    return isinstance(error, ClientError) and _code(error)[0] in _EXPIRED_CODES


def asks_to_slow_down(error: BaseException | None) -> bool:
    """Whether the store has more requests than it likes."""
    return isinstance(error, ClientError) and (_code(error)[0] == "SlowDown" or _code(error)[1] in (429, 503))


def map_error(error: BaseException, what: str, where: str) -> StoreError:
    """The StoreError that stands for ``error``; see ``mapped``."""
    if isinstance(error, ClientError):
        return _map_answer(error, what, where)
    kind: type[StoreError] = StoreError
    hint = ""
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        hint = _KEYS
    elif isinstance(error, NoRegionError):
        hint = _REGION
    elif isinstance(error, CredentialRetrievalError):
        kind, hint = TransientStoreError, _KEYS
    elif isinstance(error, (SSLError, AioSslError, ssl.SSLError)):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "Set METAFLOW_S3_VERIFY_CERTIFICATE or AWS_CA_BUNDLE to the certificate authority's file"
        else:
            kind, hint = TransientStoreError, "Check that the endpoint speaks TLS, or use http:// in its URL"
    elif isinstance(error, ProxyConnectionError):
        kind, hint = TransientStoreError, _PROXY
    elif isinstance(error, _BROKEN) or not isinstance(error, BotoCoreError):
        kind, hint = TransientStoreError, "Check METAFLOW_S3_ENDPOINT_URL and the network if this goes on"
    return kind(f"{what}: {_clean(error)}", where=where, hint=hint)


def _map_answer(error: ClientError, what: str, where: str) -> StoreError:
    code, status = _code(error)
    message = str(error.response.get("Error", {}).get("Message") or "")
    reason = f"{what}: {code}" + (f" (HTTP {status})" if status and str(status) != code else "")
    if message and message != code:
        reason += f": {_clean(message)}"
    if code in _START_OVER:
        return StartOver(reason, where=where, hint=_START_OVER[code])
    if code in _MISSING_CODES:
        return NotFound(f"There is no object {where}", where=where)
    transient = code in _TRANSIENT_CODES or status in (408, 425, 429) or (status >= 500 and status != 501)
    hint = _HINTS.get("ExpiredToken" if code in _EXPIRED_CODES else code, "")
    if not hint and status in (401, 403):
        hint = _ALLOW
    return (TransientStoreError if transient else StoreError)(reason, where=where, hint=hint)


def _code(error: ClientError) -> tuple[str, int]:
    """The code in the answer and its HTTP status; 0 where there is none."""
    code = str(error.response.get("Error", {}).get("Code") or "Unknown")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    return code, status or (int(code) if code.isdigit() else 0)


def _clean(reason: BaseException | str) -> str:
    """One line, without the user and password that an endpoint's or a proxy's URL may carry."""
    text = str(reason) or type(reason).__name__
    return _USER_INFO.sub("://***@", " ".join(text.split())).rstrip(".")
