"""Errors of botocore, aiohttp and the socket below them, in this library's words; mapped here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Iterator

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from ...errors import CheckpointError, NotFound, StoreError, TransientStoreError
from .answers import NotS3, Refusal, code_of, first_words, retry_after_s

try:
    from aiohttp import ClientError as AioClientError
    from aiohttp import ClientHttpProxyError as AioProxyAnswer
    from aiohttp import ClientProxyConnectionError as AioProxyError
except ImportError:  # Without aiobotocore, botocore has errors of its own for all of them.
    AioClientError = AioProxyAnswer = AioProxyError = ClientError


#: A limit was reached, by whoever watched it.
TIME_OUTS = (TimeoutError, asyncio.TimeoutError, ConnectTimeoutError, ReadTimeoutError)


class StartOver(StoreError):
    """This request is of no use any more, but the whole call, begun anew, may succeed."""


_TRANSIENT_CODES = frozenset({
    "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "ConnectionError",
    "DependencyTimeoutException", "ExpiredToken", "ExpiredTokenException", "IncompleteBody", "InternalError",
    "InternalFailure", "KMSInternalException", "KeyUnavailableException", "LimitExceededException", "OperationAborted",
    "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestExpired", "RequestLimitExceeded",
    "RequestThrottled", "RequestThrottledException", "RequestTimeTooSkewed", "RequestTimeout",
    "RequestTimeoutException", "ServerBusy", "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite",
    "ThrottledException", "Throttling", "ThrottlingException", "TokenRefreshRequired", "TooManyRequests",
    "TooManyRequestsException", "TransactionInProgressException", "XAmzContentSHA256Mismatch",
})  # fmt: skip
#: What other credentials may change; the last is what some stores say to any key that they do not know.
CREDENTIAL_CODES = frozenset({
    "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurity", "NotSignedUp", "SignatureDoesNotMatch", "UnrecognizedClientException",
    "401", "AuthFailure", "AccessDenied",
})  # fmt: skip
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_MISSING_CODES = frozenset({"NoSuchKey", "NotFound", "404"})
#: Characters of an error that are shown.
_SHOWN = 1000
_SLOW = re.compile("SlowDown|Throttl|TooManyRequests|RequestLimitExceeded|ServerBusy|BandwidthLimitExceeded")

_REGION = "Set AWS_DEFAULT_REGION, or region_name in METAFLOW_DATATOOLS_CLIENT_PARAMS, to the bucket's region"
_KEYS = "Check the access key: environment, ~/.aws/credentials, or the role the task runs with"
_ALLOW = (
    "Allow s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload on this prefix"
    " for the role the task runs with"
)
_ENDPOINT = "Check METAFLOW_S3_ENDPOINT_URL: is it an S3 endpoint?"
_NETWORK = "Check METAFLOW_S3_ENDPOINT_URL and the network if this goes on"
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

_NO_HTTP1 = "It does not speak HTTP/1.1: put something before it that does"
#: Words for what somebody else than an S3 server says, and the way out. Where nothing has ever come from there that was
#: S3's, another try is of no use.
_STRANGERS = (
    (("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"),
     "Its port speaks no TLS: use http:// in its URL"),
    (("NO_APPLICATION_PROTOCOL",), _NO_HTTP1),
    (("\\x15\\x03", "HTTPS port", "HTTPS server", "SSL-enabled"), "Its port speaks TLS: use https:// in its URL"),
    (("\\x00\\x00", "\\x04\\x00"), _NO_HTTP1),
    (("Bad status line", "BadStatusLine", "BadHttpMessage", "Expected HTTP/", "Invalid constant string", "Bad HTTP"),
     "What answers does not speak HTTP: check METAFLOW_S3_ENDPOINT_URL"),
    (("Hostname mismatch", "IP address mismatch", "' doesn't match"), "Use the name that its certificate is for"),
    (("certificate has expired", "certificate is not yet valid"), "Renew its certificate, or set this machine's clock"),
    (("CERTIFICATE_VERIFY_FAILED",),
     "Set METAFLOW_S3_VERIFY_CERTIFICATE or AWS_CA_BUNDLE to the certificate authority's file"),
)  # fmt: skip
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
#: Errors of libraries, whether they may pass, and the way out; all others are the network's. Of botocore's own, those
#: that are not named speak of settings and arguments.
_LIBRARIES: tuple[tuple[tuple[type[BaseException], ...], bool, str], ...] = (
    ((CredentialRetrievalError,), True, _KEYS),
    (_CREDENTIALS, False, _KEYS),
    ((NoRegionError,), False, _REGION),
    ((SSLError, ssl.SSLError), True, "Check that the endpoint speaks TLS, or use http:// in its URL"),
    ((ProxyConnectionError, AioProxyError, AioProxyAnswer), True, "Check HTTPS_PROXY and NO_PROXY"),
    (
        (BotoConnectionError, HTTPClientError, ResponseStreamingError, IncompleteReadError, ResponseParserError),
        True,
        _NETWORK,
    ),
    ((BotoCoreError,), False, ""),
)


@contextlib.contextmanager
def mapped(what: str, where: str, *, proven: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Map whatever the block raises; ``what`` begins the sentence, as in "Cannot read s3://…".

    Parameters
    ----------
    proven : callable
        Whether an S3 server has answered there before: what sounds like something else may pass then.

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
        raise _map_error(error, what, where, proven=proven()) from error
    except asyncio.TimeoutError as error:  # not an OSError before Python 3.11
        raise _map_error(error, what, where, proven=proven()) from error
    except KeyError as error:
        raise StoreError(f"{what}: the answer has no {error}", where=where, hint=_ENDPOINT) from error
    except ValueError as error:  # botocore's for an endpoint that is no URL, aiohttp's for headers it will not send
        raise StoreError(f"{what}: {_clean(error)}", where=where, hint=_ENDPOINT) from error


def asks_to_slow_down(error: BaseException | None) -> bool:
    """Whether the store has more requests than it likes."""
    if not isinstance(error, ClientError):
        return False
    code, status = code_of(error)
    return bool(_SLOW.search(code)) or status in (429, 503)


def _map_error(error: BaseException, what: str, where: str, *, proven: bool) -> StoreError:
    if isinstance(error, ClientError):
        return _map_answer(error, what, where, proven=proven)
    text = _words(error)
    rows = ((passes, hint) for types, passes, hint in _LIBRARIES if isinstance(error, types))
    passes, hint = next(rows, (True, _NETWORK))
    # A source of credentials speaks of another server.
    if (way_out := _way_out(text)) and not isinstance(error, _CREDENTIALS):
        passes, hint = proven, way_out
    return _error(passes, f"{what}: {text}", where, hint)


def _map_answer(error: ClientError, what: str, where: str, *, proven: bool) -> StoreError:
    code, status = code_of(error)
    message = str(error.response.get("Error", {}).get("Message") or "")
    if isinstance(error, NotS3):
        passes = proven if error.may_pass is None else error.may_pass
        said = message if code == "NotS3" else f"HTTP {status}" + (f": {message}" if message else "")
        return _error(passes, f"{what}: {_clean(said)}", where, _way_out(message) or _ENDPOINT)
    if code in _MISSING_CODES:
        return NotFound(f"There is no object {where}", where=where)
    reason = f"{what}: {code}" + (f" (HTTP {status})" if status and str(status) != code else "")
    if message not in ("", code):
        reason += f": {_clean(message)}"
    if code in _START_OVER:
        return StartOver(reason, where=where, hint=_START_OVER[code])
    plain = code.rpartition(".")[2]  # KMS.ThrottlingException
    passes = plain in _TRANSIENT_CODES or status in (408, 425, 429) or (status >= 500 and status != 501)
    if isinstance(error, Refusal) and error.may_pass is not None:
        passes = error.may_pass
    hint = _HINTS.get("ExpiredToken" if code in _EXPIRED_CODES else code, _ALLOW if status in (401, 403) else "")
    found = _error(passes, reason, where, hint)
    if isinstance(found, TransientStoreError) and isinstance(error, Refusal):
        found.pause_s = retry_after_s(error)
    return found


def _error(passes: bool, what: str, where: str, hint: str) -> StoreError:
    return (TransientStoreError if passes else StoreError)(what, where=where, hint=hint)


def _way_out(text: str) -> str:
    """What to do about what somebody else than an S3 server says; empty: it is none of their words."""
    return next((hint for words, hint in _STRANGERS if any(word in text for word in words)), "")


def _words(error: BaseException) -> str:
    """What an error says, with what its causes say that it does not."""
    text = _clean(error)
    cause = error.__cause__ or error.__context__
    if isinstance(error, (AioClientError, BotoCoreError)) and cause is not None and not isinstance(cause, ClientError):
        more = _clean(cause)
        if more not in text:
            text += f" ({more})"
    return text


def _clean(reason: BaseException | str) -> str:
    """One line of printable characters, without the user and password that an endpoint's or a proxy's URL may carry."""
    text = str(reason) or type(reason).__name__
    return _USER_INFO.sub("://***@", first_words(text.encode("utf-8", "replace"), shown=_SHOWN)).rstrip(".")
