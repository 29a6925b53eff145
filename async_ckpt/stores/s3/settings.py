"""What requests are made with: the settings of the user, as botocore reads them, then what we need."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from botocore.config import Config as BotoConfig
from botocore.session import get_session

from ...config import Config
from ...errors import UsageError
from . import S3Settings
from .endpoint import PROBE, Endpoint
from .transport import Network, Timeouts

#: What a client signs with: whatever is sent is signed by ``signing.py``.
_PLACEHOLDER = {"aws_access_key_id": "placeholder", "aws_secret_access_key": "placeholder"}

_CREDENTIAL_PARAMS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_account_id")


class Found(NamedTuple):
    """What botocore makes of the settings.

    Parameters
    ----------
    endpoint : Endpoint
        Where the bucket is.
    network : Network
        How it is reached.
    timeouts : Timeouts
        Of the phases of a request.
    signs_content : bool
        Whether signatures cover content, which is read twice then.
    """

    endpoint: Endpoint
    network: Network
    timeouts: Timeouts
    signs_content: bool


class _Prepared(Exception):
    """Not an error: it is raised so that a request which a client has prepared is not sent."""


def look_up(settings: S3Settings, config: Config, bucket: str) -> Found:
    """Have botocore read the settings, and prepare a request that shows where the bucket is. Reads files.

    Raises
    ------
    UsageError
        The settings hold something that a client does not take.
    """
    params = client_params(settings)
    params["config"] = merged_config(params.get("config"), config)
    session, prepared = get_session(), []

    def hold(request: Any, **_: Any) -> None:
        prepared.append(request)
        raise _Prepared

    try:
        client = session.create_client("s3", **params)
    except TypeError as error:
        raise UsageError(
            f"An S3 client cannot be made from these settings: {error}", hint="Check METAFLOW_DATATOOLS_CLIENT_PARAMS"
        ) from error
    client.meta.events.register_first("before-send.s3", hold)
    with contextlib.closing(client), contextlib.suppress(_Prepared):
        client.head_object(Bucket=bucket, Key=PROBE)
    options = client.meta.config
    endpoint = Endpoint.learn(prepared[0], bucket, options.signature_version)
    return Found(
        endpoint, Network.of(options, params, session),
        Timeouts(options.connect_timeout, options.read_timeout, config.stall_timeout_s),
        signs_content(options.s3 or {}, endpoint.base, config),
    )  # fmt: skip


def merged_config(given: Any, config: Config) -> BotoConfig:
    """The user's botocore ``Config`` (or a mapping of options, or None), with only what it leaves open filled in."""
    options = _options(given)
    ours = {
        "connect_timeout": config.connect_timeout_s,
        "read_timeout": config.answer_timeout_s,
        **options,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Directory buckets sign with keys of a session of their own, unless they are asked not to.
        "s3": {"disable_s3_express_session_auth": True, **(options.get("s3") or {})},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    # A pod's botocore may be from before some of ours; of the user's, it says which it does not know.
    known = {*BotoConfig.OPTION_DEFAULTS, *options}
    return BotoConfig(**{name: value for name, value in ours.items() if name in known})


def client_params(settings: S3Settings) -> dict[str, Any]:
    """A copy of the parameters of ``create_client``, with keys that open nothing."""
    params = copy.deepcopy(dict(settings.client_params))
    for name in _CREDENTIAL_PARAMS:
        params.pop(name, None)
    return params | _PLACEHOLDER


def sends_checksums(given: Any, config: Config) -> bool:
    """Whether the CRC-32 of a body goes with it: ``Config.checksums``, unless the user told botocore otherwise."""
    return config.checksums and _said(given, "request_checksum_calculation") != "when_required"


def validates(given: Any) -> bool:
    """Whether the store is asked for the checksum of what is read: unless the user told botocore not to."""
    return _said(given, "response_checksum_validation") != "when_required"


def _said(given: Any, name: str) -> str:
    """What the user wants of botocore: its ``Config`` (or a mapping), the environment, the config file."""
    return str(_options(given).get(name) or get_session().get_config_variable(name) or "").lower()


def _options(given: Any) -> dict[str, Any]:
    """The options that a user gave as a botocore ``Config``, as a mapping, or not at all."""
    return dict(given if isinstance(given, Mapping) else getattr(given, "_user_provided_options", None) or {})


def signs_content(s3: Mapping[str, Any], base: str, config: Config) -> bool:
    """Whether signatures cover content, which is read twice then: where the user says so, or nothing else guards it."""
    said = s3.get("payload_signing_enabled")
    if said is not None:
        return bool(said)
    return not (base.startswith("https:") or is_loopback(base) or config.unsigned_payload)


class UserHeaders:
    """Headers that the user wants on requests, by what is asked of the store.

    Parameters
    ----------
    settings : S3Settings
        ``server_side_encryption``.
    config : Config
        Its ``s3_…`` settings.
    """

    def __init__(self, settings: S3Settings, config: Config) -> None:
        self._all = {"x-amz-request-payer": "requester"} if config.s3_requester_pays else {}
        encryption: dict[str, str] = {}
        if config.s3_kms_key_id or settings.server_side_encryption:
            encryption["x-amz-server-side-encryption"] = settings.server_side_encryption or "aws:kms"
        if config.s3_kms_key_id:
            encryption["x-amz-server-side-encryption-aws-kms-key-id"] = config.s3_kms_key_id
        if config.s3_bucket_key:
            encryption["x-amz-server-side-encryption-bucket-key-enabled"] = "true"
        own, source = _own_key("x-amz-", config), _own_key("x-amz-copy-source-", config)
        storage = {"x-amz-storage-class": config.s3_storage_class} if config.s3_storage_class else {}
        creating = {**(own or encryption), **storage}
        self._by_operation = {
            "PutObject": creating, "CreateMultipartUpload": creating, "CopyObject": {**creating, **source},
            "UploadPartCopy": {**own, **source}, "UploadPart": own, "CompleteMultipartUpload": own, "GetObject": own,
            "HeadObject": own, "ListParts": own,
        }  # fmt: skip
        self._small = own or encryption
        self.needs_tls = bool(own)

    def headers(self, operation: str, *, small: bool = False) -> dict[str, str]:
        """Of a request; ``small``: what it writes is metadata, which keeps the bucket's storage class."""
        return {**self._all, **(self._small if small else self._by_operation.get(operation, {}))}


def _own_key(prefix: str, config: Config) -> dict[str, str]:
    if not config.s3_sse_c_key:
        return {}
    name, key = f"{prefix}server-side-encryption-customer", base64.b64decode(config.s3_sse_c_key)
    digest = base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode()
    return {f"{name}-algorithm": "AES256", f"{name}-key": config.s3_sse_c_key, f"{name}-key-md5": digest}


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
