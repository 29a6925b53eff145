"""Every error of the libraries underneath becomes one of ours, with the right verdict, and shows no credential."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from botocore import exceptions
from botocore.parsers import ResponseParserError

from async_ckpt.errors import IntegrityError, NotFound, StoreError, TransientStoreError
from async_ckpt.stores.s3.answers import NotS3, Refusal
from async_ckpt.stores.s3.errors import StartOver, asks_to_slow_down, mapped

WHERE = "s3://bucket/key"


def refused(code: str, status: int = 0, message: str = "") -> exceptions.ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return exceptions.ClientError(answer, "PutObject")


def verdict(error: BaseException) -> StoreError:
    with pytest.raises(StoreError) as caught, mapped(f"Cannot write {WHERE}", WHERE):
        raise error
    assert caught.value.__cause__ is error
    assert WHERE in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        refused("SlowDown", 503),
        refused("SlowDown", 200),
        refused("InternalError", 500),
        refused("502", 502),
        refused("TooManyRequests", 429),
        refused("RequestTimeout", 400),
        refused("ExpiredToken", 400),
        refused("KMS.ThrottlingException", 400),
        refused("RequestTimeTooSkewed", 403),
        refused("BadDigest", 400),
        refused("OperationAborted", 409),
        exceptions.EndpointConnectionError(endpoint_url="http://x"),
        exceptions.ConnectionClosedError(endpoint_url="http://x"),
        exceptions.ConnectTimeoutError(endpoint_url="http://x"),
        exceptions.ReadTimeoutError(endpoint_url="http://x"),
        exceptions.HTTPClientError(error="?"),
        exceptions.ProxyConnectionError(proxy_url="http://x"),
        exceptions.SSLError(endpoint_url="http://x", error="EOF occurred in violation of protocol"),
        exceptions.ResponseStreamingError(error="cut"),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        exceptions.CredentialRetrievalError(provider="role", error_msg="no answer"),
        ResponseParserError("not XML"),
        aiohttp.ClientPayloadError("cut"),
        aiohttp.ServerDisconnectedError(),
        asyncio.TimeoutError(),
        asyncio.IncompleteReadError(b"", 1),
        ConnectionResetError(104, "reset"),
        socket.gaierror(-3, "Temporary failure in name resolution"),
    ],
    ids=repr,
)
def test_what_may_pass_is_transient(error: BaseException) -> None:
    assert type(verdict(error)) is TransientStoreError


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (refused("AccessDenied", 403), "s3:PutObject"),
        (refused("403", 403), "s3:ListBucket"),
        (refused("SomethingNew", 403), "s3:PutObject"),
        (refused("NoSuchBucket", 404), "Create the bucket"),
        (refused("InvalidAccessKeyId", 403), "access key"),
        (refused("SignatureDoesNotMatch", 403), "secret key"),
        (refused("400", 400), ""),
        (exceptions.SSLError(endpoint_url="https://x", error="[SSL: WRONG_VERSION_NUMBER] wrong"), "use http://"),
        (exceptions.SSLError(endpoint_url="https://x", error="NO_APPLICATION_PROTOCOL"), "HTTP/1.1"),
        (
            exceptions.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED Hostname mismatch"),
            "name that its certificate is for",
        ),
        (
            exceptions.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED: certificate has expired"),
            "clock",
        ),
        (refused("KMS.DisabledException", 400), ""),
        (refused("PermanentRedirect", 301), "region"),
        (refused("InvalidRequest", 400), "when_supported"),
        (refused("NotImplemented", 501), ""),
        (exceptions.NoCredentialsError(), "access key"),
        (exceptions.NoRegionError(), "region"),
        (exceptions.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED"), "AWS_CA_BUNDLE"),
        (exceptions.ParamValidationError(report="no"), ""),
        (ValueError("Invalid endpoint: nonsense"), "METAFLOW_S3_ENDPOINT_URL"),
        (KeyError("UploadId"), "METAFLOW_S3_ENDPOINT_URL"),
    ],
    ids=repr,
)
def test_what_will_not_pass_names_the_way_out(error: BaseException, way_out: str) -> None:
    found = verdict(error)
    assert type(found) is StoreError
    assert way_out in found.hint


@pytest.mark.parametrize("code", ["NoSuchKey", "404", "NotFound"])
def test_a_missing_object_is_not_found(code: str) -> None:
    assert type(verdict(refused(code, 404))) is NotFound


def test_an_upload_that_somebody_aborted_must_start_over() -> None:
    assert type(verdict(refused("NoSuchUpload", 404))) is StartOver


def test_errors_of_ours_pass_as_they_are() -> None:
    error = IntegrityError("torn")
    with pytest.raises(IntegrityError) as caught, mapped("Cannot write", WHERE):
        raise error
    assert caught.value is error


def test_a_cancellation_passes_as_it_is() -> None:
    with pytest.raises(asyncio.CancelledError), mapped("Cannot write", WHERE):
        raise asyncio.CancelledError


def test_the_password_in_a_url_is_not_shown() -> None:
    error = exceptions.EndpointConnectionError(endpoint_url="http://user:hunter2@minio:9000/bucket")
    assert "hunter2" not in str(verdict(error))
    assert "minio:9000" in str(verdict(error))


def test_what_sounds_like_something_else_may_pass_where_s3_has_answered_before() -> None:
    error = exceptions.SSLError(endpoint_url="https://x", error="[SSL: WRONG_VERSION_NUMBER] wrong version number")
    with pytest.raises(TransientStoreError, match="use http://"), mapped("Cannot write", WHERE, proven=lambda: True):
        raise error
    page = NotS3({"Error": {"Code": "NotS3", "Message": "HTTP 200, but it has no ETag"}}, "PutObject")
    with pytest.raises(TransientStoreError, match="has no ETag"), mapped("Cannot write", WHERE, proven=lambda: True):
        raise page
    with pytest.raises(StoreError, match="has no ETag") as caught, mapped("Cannot write", WHERE):
        raise page
    assert not isinstance(caught.value, TransientStoreError)


@pytest.mark.parametrize(
    ("code", "status"),
    [("SlowDown", 503), ("ThrottlingException", 400), ("KMS.ThrottlingException", 400), ("502", 429)],
)
def test_a_store_that_has_too_many_requests_is_heard(code: str, status: int) -> None:
    assert asks_to_slow_down(refused(code, status))
    assert not asks_to_slow_down(refused("AccessDenied", 403))
    assert not asks_to_slow_down(None)


def test_a_pause_that_the_store_asks_for_is_kept() -> None:
    answer = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "17"}},
    }
    with pytest.raises(TransientStoreError) as caught, mapped("Cannot write", WHERE):
        raise Refusal(answer, "PutObject")
    assert caught.value.pause_s == 17
