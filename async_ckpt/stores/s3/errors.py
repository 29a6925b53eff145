"""Errors of botocore, aiohttp and the socket below them, in this library's words; mapped here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Iterator

from botocore.exceptions import (
    BotoCoreError,
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

from ...errors import CheckpointError, NotFound, StoreError, TransientStoreError
from .answers import NotS3, Refusal, first_words

try:
    from aiohttp import ClientError as AioClientError
    from aiohttp import ClientHttpProxyError as AioProxyAnswer
    from aiohttp import ClientProxyConnectionError as AioProxyError
except Exception:  # Where it cannot be imported, botocore's errors are all there are; ``best_transport`` says why.
    AioClientError, AioProxyAnswer, AioProxyError = HTTPClientError, ProxyConnectionError, ProxyConnectionError


#: A limit was reached, by whoever watched it.
TIME_OUTS = (TimeoutError, asyncio.TimeoutError, ConnectTimeoutError, ReadTimeoutError)


class StartOver(StoreError):
    """This request is of no use any more, but the whole call, begun anew, may succeed."""


#: Characters of an error that are shown.
_SHOWN = 1000

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
    ((BotoConnectionError, HTTPClientError, ResponseStreamingError, IncompleteReadError), True, _NETWORK),
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
    except Refusal as error:
        raise _map_refusal(error, what, where, proven=proven()) from error
    except (BotoCoreError, AioClientError, OSError, EOFError, asyncio.TimeoutError) as error:
        raise _map_error(error, what, where, proven=proven()) from error
    except ValueError as error:  # botocore's for an endpoint that is no URL, aiohttp's for headers it will not send
        raise StoreError(f"{what}: {_clean(error)}", where=where, hint=_ENDPOINT) from error


def _map_error(error: BaseException, what: str, where: str, *, proven: bool) -> StoreError:
    text = _words(error)
    rows = ((passes, hint) for types, passes, hint in _LIBRARIES if isinstance(error, types))
    passes, hint = next(rows, (True, _NETWORK))
    # A source of credentials speaks of another server.
    if (way_out := _way_out(text)) and not isinstance(error, _CREDENTIALS):
        passes, hint = proven, way_out
    return _error(passes, f"{what}: {text}", where, hint)


def _map_refusal(error: Refusal, what: str, where: str, *, proven: bool) -> StoreError:
    code, status = error.code, str(error.status)
    if isinstance(error, NotS3):
        passes = proven if error.may_pass is None else error.may_pass
        return _error(passes, f"{what}: {_clean(error.message)}", where, _way_out(error.message) or _ENDPOINT)
    if error.is_missing:
        return NotFound(f"There is no object {where}", where=where)
    reason = f"{what}: {code}" + (f" (HTTP {status})" if status != code else "")
    if error.message not in ("", code):
        reason += f": {_clean(error.message)}"
    if code in _START_OVER:
        return StartOver(reason, where=where, hint=_START_OVER[code])
    hint = _HINTS.get("ExpiredToken" if error.is_expired else code, _ALLOW if error.status in (401, 403) else "")
    mapped = _error(error.passes, reason, where, hint)
    if isinstance(mapped, TransientStoreError):
        mapped.pause_s = error.pause_s
    return mapped


def _error(passes: bool, what: str, where: str, hint: str) -> StoreError:
    return (TransientStoreError if passes else StoreError)(what, where=where, hint=hint)


def _way_out(text: str) -> str:
    """What to do about what somebody else than an S3 server says; empty: it is none of their words."""
    return next((hint for words, hint in _STRANGERS if any(word in text for word in words)), "")


def _words(error: BaseException) -> str:
    """What an error says, with what its causes say that it does not."""
    text = _clean(error)
    cause = error.__cause__ or error.__context__
    if isinstance(error, (AioClientError, BotoCoreError)) and cause is not None:
        more = _clean(cause)
        if more not in text:
            text += f" ({more})"
    return text


def _clean(reason: BaseException | str) -> str:
    """One line of printable characters, without the user and password that an endpoint's or a proxy's URL may carry."""
    text = str(reason) or type(reason).__name__
    return _USER_INFO.sub("://***@", first_words(text.encode("utf-8", "replace"), shown=_SHOWN)).rstrip(".")
