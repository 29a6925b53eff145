"""What both kinds of S3 clients are made with: the settings of the user, then what makes them fast and predictable."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import hashlib
import ipaddress
import os
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from botocore.config import Config as BotoConfig
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.session import get_session
from botocore.utils import get_environ_proxies

from ...config import Config
from ...errors import StoreError, UsageError, os_reason
from . import S3Settings
from .answers import Answer
from .phases import Timeouts
from .transport import Transport

C = TypeVar("C", bound=BotoConfig)

#: What a client signs with; whatever it prepares is signed again before it is sent.
PLACEHOLDER = {"aws_access_key_id": "placeholder", "aws_secret_access_key": "placeholder"}

_CREDENTIAL_PARAMS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_account_id")

#: Sends a request that a client has prepared for an operation, and returns an answer that means success.
Exchange = Callable[[str, Any], Coroutine[Any, Any, Answer]]


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


class OpenedClient(NamedTuple):
    """A client and what carries its requests.

    Parameters
    ----------
    client : object
        Of aiobotocore, or one that does as it does: its methods are awaited.
    transport : Transport
        Sends what was signed.
    network : Network
        How the store is reached.
    timeouts : Timeouts
        Of the phases of a request.
    notice : str
        What the user should know of it; usually nothing.
    """

    client: Any
    transport: Transport
    network: Network
    timeouts: Timeouts
    notice: str = ""


#: Makes a client in the running loop; the stack closes it. Raises ``UsageError`` where settings are not a client's.
OpenClient = Callable[[AsyncExitStack, S3Settings, Config, Exchange], Awaitable[OpenedClient]]


def merged_config(kind: type[C], given: Any, config: Config) -> C:
    """The user's botocore ``Config`` (or a mapping of options, or None), with only what it leaves open filled in.

    Parameters
    ----------
    kind : type
        Botocore's ``Config`` or a class made from it.
    """
    options = _options(given)
    ours = {
        "connect_timeout": config.connect_timeout_s,
        "read_timeout": config.answer_timeout_s,
        **options,
        # What a client prepares is sent once; S3Store and RetryStore try again, and know when to stop.
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Directory buckets sign with keys of a session of their own, unless they are asked not to.
        "s3": {"disable_s3_express_session_auth": True, **(options.get("s3") or {})},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    # A pod's botocore may be from before some of ours; of the user's, it says which it does not know.
    known = {*BotoConfig.OPTION_DEFAULTS, *options}
    merged: C = kind(**{name: value for name, value in ours.items() if name in known})
    return merged


def client_params(settings: S3Settings) -> dict[str, Any]:
    """A copy of the parameters of ``create_client``, with keys that open nothing."""
    params = copy.deepcopy(dict(settings.client_params))
    for name in _CREDENTIAL_PARAMS:
        params.pop(name, None)
    return params | PLACEHOLDER


@contextlib.contextmanager
def made() -> Iterator[None]:
    """Around the making of a client.

    Raises
    ------
    UsageError
        The settings hold something that a client does not take.
    """
    try:
        yield
    except TypeError as error:
        raise UsageError(
            f"An S3 client cannot be made from these settings: {error}", hint="Check METAFLOW_DATATOOLS_CLIENT_PARAMS"
        ) from error


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
