"""Requests to S3. Each is signed, sent, and ended if it takes too long; its answer may say how to send it again.

Everything goes through ``Engine.exchange``: content, which ``objects.py`` prepares, and the requests that botocore's
client prepares (``Engine.call``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ...config import CREDENTIALS_TIMEOUT_S, FAILURE_SHARED_S, Config
from ...errors import CheckpointError, StoreError, TransientStoreError, UsageError
from ..base import check_key
from ..throttle import Throttle
from . import S3Settings
from .answers import MAX_ERROR_BYTES, Answer, NotS3, Refusal, check, clock_offset_s, code_of, header, is_page, is_s3
from .body import Body
from .choice import open_client as open_best
from .credentials import Credentials, asked, botocore_chain
from .endpoint import PROBE, Endpoint, endpoint_in, is_elsewhere, region_in
from .errors import CREDENTIAL_CODES, TIME_OUTS, asks_to_slow_down, mapped
from .limits import AdaptiveLimiter, Limiter
from .phases import PhaseTimer
from .settings import OpenClient, OpenedClient, UserHeaders, is_loopback, sends_checksums, signs_content, validates
from .signing import NO_CONTENT, Headers, sha256
from .transport import Dropped, Incoming, SignedRequest

T = TypeVar("T")

#: S3's limit for the name of an object, in bytes.
_MAX_NAME_BYTES = 1024
#: A page of a listing is at most so long.
_MAX_LISTING_BYTES = 8 << 20
#: How often one request is sent on to another endpoint, and how many redirects are followed to find the bucket.
_MOST_MOVES = 4
#: Headers of a request that a client prepared which are not kept: they are made anew.
_MADE_ANEW = frozenset({
    "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "connection", "content-length",
    "expect", "host", "user-agent", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token",
})  # fmt: skip
_COMPRESSED = ("gzip", "x-gzip", "deflate", "br", "zstd")
_CUT = "the answer broke off in its head"
#: Operations in which the store puts an object together. They may take minutes.
_LONG = ("CompleteMultipartUpload", "CopyObject", "UploadPartCopy")


class UnsignedRequest(NamedTuple):
    """A request before it is signed.

    Parameters
    ----------
    path : str
        What follows the endpoint's ``base``, with a query perhaps.
    digest : str
        SHA-256 of the body in hex digits, or ``UNSIGNED_PAYLOAD``.
    """

    operation: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | Body | None = None
    digest: str = NO_CONTENT


#: Reads an answer's content.
Reader = Callable[[Incoming, PhaseTimer], Awaitable[T]] | None


class _Prepared(Exception):
    """Not an error: it is raised so that a request which the client has prepared is not sent."""

    def __init__(self, request: Any) -> None:
        self.request = request


class Setup(NamedTuple):
    """What requests are made with. It is made when the store is first used.

    Parameters
    ----------
    user_headers : UserHeaders
        Headers that the user wants.
    checksums, validates : bool
        Whether the CRC-32 of what is sent goes with it, and whether the store is asked for its own of what is read.
    signs_content : bool
        Whether signatures cover content.
    """

    opened: OpenedClient
    credentials: Credentials
    user_headers: UserHeaders
    checksums: bool
    validates: bool
    signs_content: bool


class Engine:
    """Requests for the objects below ``root``; connects in the loop that first uses it.

    Parameters
    ----------
    root : str
        ``s3://bucket/prefix``.
    settings : callable
        Returns what the client is made with; called in a thread, at first use and after a failure.
    config : Config
        Limits.
    open_client : callable
        Makes the client.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    def __init__(
        self, root: str, settings: Callable[[], S3Settings], config: Config, open_client: OpenClient = open_best
    ) -> None:
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not root.startswith("s3://") or not bucket:
            raise UsageError(
                f"{root!r} is not an S3 address", hint="Set METAFLOW_DATASTORE_SYSROOT_S3 to s3://bucket/prefix"
            )
        self.root = root.rstrip("/")
        self.bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._settings, self.config, self._open = settings, config, open_client
        #: What the user should know of how requests travel; usually nothing.
        self.notice = ""
        self.throttle = Throttle(config.max_bandwidth_bytes_s)
        #: Requests in flight over all calls of the store. Small ones have a limit of their own, so that a commit, or a
        #: thousand small files, do not stand behind the parts of a big one.
        self.small = Limiter(config.files_in_flight)
        self.large = AdaptiveLimiter(config.parts_in_flight, config.max_parts_in_flight)
        #: How many there can be.
        self.most = config.files_in_flight + config.max_parts_in_flight
        self._opening = asyncio.Lock()
        self._moving = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._setup: Setup | None = None
        self._endpoint: Endpoint | None = None
        self._client_base = ""  # The base of what the client prepares; ``_endpoint`` may be elsewhere by now.
        self._first_endpoint: Endpoint | None = None
        self._failures: dict[str, tuple[float, Exception]] = {}
        self._offset_s = 0.0
        #: Whether something that is S3 has answered.
        self._s3_answered = False

    # -- names ---------------------------------------------------------------------------------------------------------

    def name(self, key: str) -> str:
        """The name in the bucket of a key's object.

        Raises
        ------
        StoreError
            It is longer than S3 allows.
        """
        name = self._prefix + check_key(key)
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            raise StoreError(
                f"The name of {name!r} is not UTF-8, and S3 has no others", where=self.root, hint="Rename the file"
            ) from None
        if length > _MAX_NAME_BYTES:
            raise StoreError(
                f"The name of an object may have {_MAX_NAME_BYTES:,} bytes, and {name[:100]}… has {length:,}",
                where=self.root, hint="Save with shorter names of directories and files",
            )  # fmt: skip
        return name

    def path(self, key: str) -> str:
        """What follows the endpoint's ``base`` in the URL of a key's object."""
        return Endpoint.path(self.name(key))

    def key(self, name: str) -> str:
        """The key of an object, from its name in the bucket."""
        return name.removeprefix(self._prefix)

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def setup(self) -> Setup:
        """What requests are made with; the first call connects.

        Raises
        ------
        StoreError
            The client cannot be made: a wrong endpoint, no region, settings that cannot be had.
        """
        if self._setup is not None:
            return self._setup
        async with self._opening:
            if self._setup is None:
                async with AsyncExitStack() as stack:
                    with self._sharing_failure("open"), mapped(f"Cannot make a client for {self.root}", self.root):
                        settings = await self._ask_settings()
                        opened = await self._open(stack, settings, self.config, self._send_prepared)
                        endpoint = await self._learn(opened.client)
                    self._adopt(settings, opened, endpoint)
                    self._stack = stack.pop_all()
            assert self._setup is not None, "adopted"
            return self._setup

    async def _ask_settings(self) -> S3Settings:
        return await asked(self._settings, CREDENTIALS_TIMEOUT_S, "Metaflow's S3 client")

    def _adopt(self, settings: S3Settings, opened: OpenedClient, endpoint: Endpoint) -> None:
        config, options = self.config, opened.client.meta.config
        user_headers = UserHeaders(settings, config)
        if user_headers.needs_tls and not endpoint.base.startswith("https:") and not is_loopback(endpoint.base):
            raise UsageError(
                f"A key of one's own is sent with every request, and {endpoint.host} has no TLS",
                hint="Use https:// in METAFLOW_S3_ENDPOINT_URL",
            )
        source = settings.credentials or botocore_chain(settings.client_params)
        given = settings.client_params.get("config")
        self._setup = Setup(
            opened, Credentials(source, CREDENTIALS_TIMEOUT_S), user_headers, sends_checksums(given, config),
            validates(given), signs_content(options.s3 or {}, endpoint.base, config),
        )  # fmt: skip
        self._endpoint = self._first_endpoint = endpoint
        self._client_base = endpoint.base
        slower = [opened.notice] if opened.notice else []
        if self._setup.signs_content:
            slower.append("content is read twice, because it is signed: it travels over plain HTTP, or was asked for")
        if proxy := opened.network.proxy(endpoint.base):
            slower.append(f"requests go through the proxy {proxy.rpartition('@')[2]}")
        self.notice = "; ".join(slower)

    async def _learn(self, client: Any) -> Endpoint:
        try:
            await client.head_object(Bucket=self.bucket, Key=PROBE)
        except _Prepared as prepared:
            return Endpoint.learn(prepared.request, self.bucket, client.meta.config.signature_version)
        raise AssertionError("the request for the probe was sent")

    async def aclose(self) -> None:
        """Close the client; the next call would make another."""
        stack, self._stack, self._setup = self._stack, None, None
        if stack is not None:
            await stack.aclose()

    # -- requests ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def mapping(self, verb: str, key: str) -> Iterator[None]:
        """Around requests: maps their errors to ours, and gives way to a store that has too many.

        Raises
        ------
        StoreError
            As ``mapped``.
        """
        where = f"{self.root}/{key}"
        try:
            with mapped(f"Cannot {verb} {where}", where, proven=lambda: self._s3_answered):
                yield
        except StoreError as error:
            if asks_to_slow_down(error.__cause__):
                self.large.slow_down()
            raise

    async def call(self, verb: str, key: str, method: str, **params: Any) -> Any:
        """Call a method of the client about a key's object, and return its answer; errors are mapped (``mapping``)."""
        client = (await self.setup()).opened.client
        with self.mapping(verb, key):
            named = {} if "Prefix" in params else {"Key": self.name(key)}  # A listing is of many keys.
            return await getattr(client, method)(Bucket=self.bucket, **named, **params)

    async def _send_prepared(self, operation: str, prepared: Any) -> Answer:
        """See ``Exchange``."""
        if operation == "HeadObject":
            raise _Prepared(prepared)  # The only one that is asked through a client: for ``_learn``.
        setup = await self.setup()
        body = prepared.body or b""
        data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else body.read()
        headers = {
            name.lower(): value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for name, value in prepared.headers.items()
            if name.lower() not in _MADE_ANEW
        }
        url = urlsplit(prepared.url)
        path = url.path.removeprefix(urlsplit(self._client_base).path) + (f"?{url.query}" if url.query else "")
        headers |= setup.user_headers.headers(operation)
        request = UnsignedRequest(operation, prepared.method, path, headers, data or None, sha256(data))
        answer: Answer = await self.exchange(request)
        return answer

    async def exchange(self, request: UnsignedRequest, reader: Reader[Any] = None) -> Any:
        """Send a request, and send it again if the bucket turns out to be elsewhere, this machine's clock is wrong, the
        credentials have expired, or the server had closed a kept connection.

        Parameters
        ----------
        reader : callable or None
            Reads the content of an answer, and returns what this method returns. None: the answer is returned.
        """
        setup = await self.setup()
        done: set[str] = set()
        while True:
            endpoint = self._endpoint
            assert endpoint is not None, "known since the client was opened"
            keys = await setup.credentials.get() if endpoint.signing.signs else None
            try:
                result = await self._send(request, setup, endpoint, keys, reader)
            except Dropped as error:
                # The server had given up a kept connection, most likely; the next one is new.
                if "dropped" in done:
                    self._forget_redirect()
                    raise error.__cause__ or error from None
                done.add("dropped")
                setup.opened.transport.drop_connections()
                if isinstance(request.body, Body):
                    request.body.cautious = True
            except Refusal as error:
                await self._heed(error, request, setup, endpoint, keys, done)
            except CheckpointError:
                raise  # Of the content, at this end.
            except Exception:
                self._forget_redirect()
                raise
            else:
                self._s3_answered = True
                if keys is not None:
                    setup.credentials.accepted(keys)
                return result

    async def _heed(
        self, error: Refusal, request: UnsignedRequest, setup: Setup, endpoint: Endpoint, keys: Any, done: set[str]
    ) -> None:  # fmt: skip
        """Prepare what a refusal asks for, so that the request can be sent again; raise it if there is nothing to do.

        Parameters
        ----------
        done : set of str
            What was done before for this request: nothing is done twice, but for a few moves.
        """
        if isinstance(error, NotS3):
            if error.may_pass is None:
                error.may_pass = self._s3_answered
            self._forget_redirect()
        self._s3_answered = self._s3_answered or is_s3(error)
        code, _ = code_of(error)
        move = next((f"move {n}" for n in range(_MOST_MOVES) if f"move {n}" not in done), None)
        if is_elsewhere(error) and move is not None:
            done.add(move)
            await self._move(setup, endpoint, request, error)
        elif code == "RequestTimeTooSkewed" and code not in done and (offset_s := clock_offset_s(error)):
            done.add(code)
            self._offset_s = offset_s
        elif code in CREDENTIAL_CODES and keys is not None and "renewed" not in done:
            done.add("renewed")
            if not await self._renew(setup.credentials, keys, error):
                raise error
        else:
            raise error

    async def _renew(self, credentials: Credentials, used: Any, error: Refusal) -> bool:
        """Whether there are other credentials than those that were refused."""
        ambiguous = code_of(error)[0] == "AccessDenied"
        if not credentials.refuse(used, ambiguous=ambiguous):
            return False
        if await credentials.get() != used:
            return True
        if not ambiguous and credentials.were_good(used):
            error.may_pass = True  # They were changed in the store, and the new ones are not here yet.
        return False

    async def _send(
        self, request: UnsignedRequest, setup: Setup, endpoint: Endpoint, keys: Any, reader: Reader[Any] = None
    ) -> Any:
        """Send a request once."""
        body, opened = request.body, setup.opened
        headers = Headers(request.headers)
        headers["host"] = endpoint.host
        if body is not None or request.method in ("PUT", "POST"):
            headers["content-length"] = str(body.length if isinstance(body, Body) else len(body or b""))
        url = endpoint.base + request.path
        if keys is not None:
            endpoint.signing.sign(request.method, url, headers, request.digest, keys, self._offset_s)
        headers["Accept-Encoding"] = "identity"
        timeouts = opened.timeouts
        if request.operation in _LONG:
            # It may send a head at once, and then a space now and then until it is done.
            longest = max(timeouts.answer_s, self.config.complete_timeout_s)
            timeouts = timeouts._replace(answer_s=longest, stall_s=max(timeouts.stall_s, longest))
        try:
            with PhaseTimer(timeouts) as timer:
                async with opened.transport.send(SignedRequest(request.method, url, headers, body), timer) as incoming:
                    return await _understand(request, incoming, timer, reader)
        except Exception as error:
            if isinstance(body, Body):
                body.give_up()
                if body.error is not None:
                    raise body.error from None
            if isinstance(error, TIME_OUTS):
                opened.transport.drop_connections()
            raise

    # -- where the bucket is -------------------------------------------------------------------------------------------

    async def _move(self, setup: Setup, endpoint: Endpoint, request: UnsignedRequest, said: Refusal) -> None:
        """Find out where the bucket is, by requests without a body. One request does so for all that were sent on.

        Raises
        ------
        StoreError
            No S3 was found. If S3 has answered before, this error may pass: it may have been a captive portal.
        """
        async with self._moving:
            if self._endpoint is not endpoint:
                return
            kind = TransientStoreError if self._s3_answered else StoreError
            why = "each place that it names names another"
            try:
                with self._sharing_failure("move"):
                    path = request.path
                    for _ in range(_MOST_MOVES):
                        endpoint = await self._next_endpoint(endpoint, said, path)
                        answer = await self._probe(setup, endpoint)
                        if not isinstance(answer, Refusal) or not is_elsewhere(answer):
                            if not isinstance(answer, Refusal) or is_s3(answer) or not is_page(answer):
                                self._endpoint = endpoint
                                return
                            why = f"{endpoint.base} is no S3: {answer}"
                            break
                        said, path = answer, f"/{PROBE}"
            except LookupError:
                why = "it does not say where"
            raise kind(
                f"The bucket is elsewhere, says the store, and {why}", where=self.root,
                hint="Set METAFLOW_S3_ENDPOINT_URL, and AWS_DEFAULT_REGION, to where the bucket is",
            ) from said  # fmt: skip

    async def _probe(self, setup: Setup, endpoint: Endpoint) -> Answer | Refusal:
        """What an endpoint says to a request for an object that need not be there."""
        keys = await setup.credentials.get() if endpoint.signing.signs else None
        try:
            request = UnsignedRequest("HeadObject", "HEAD", f"/{PROBE}", {})
            answer: Answer = await self._send(request, setup, endpoint, keys)
        except Refusal as refusal:
            return refusal
        return answer

    async def _next_endpoint(self, endpoint: Endpoint, said: Refusal, path: str) -> Endpoint:
        """The endpoint that an answer names; ``LookupError``: it names none."""
        region = region_in(said) or endpoint.region
        found = endpoint.at(header(said, "location"), path)
        if found is None and region != endpoint.region:
            found = await self._endpoint_in(region)
        if found is None or found == endpoint:
            found = endpoint.at(endpoint_in(said), path) or endpoint
        found = replace(found, region=region)
        if found == endpoint:
            raise LookupError
        return found

    def _forget_redirect(self) -> None:
        """Nobody answers where the bucket was said to be: the next try goes to where we were sent from."""
        self._endpoint = self._first_endpoint

    @contextlib.contextmanager
    def _sharing_failure(self, what: str) -> Iterator[None]:
        """Around something that all requests wait for, one after the other: if it failed a moment ago, the next ones
        raise the same error without another try.
        """
        until, error = self._failures.get(what, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise error
        try:
            yield
        except Exception as raised:
            self._failures[what] = time.monotonic() + FAILURE_SHARED_S, raised
            raise
        self._failures.pop(what, None)

    async def _endpoint_in(self, region: str) -> Endpoint:
        """Where botocore looks for the bucket in a region."""
        settings = await self._ask_settings()
        settings = replace(settings, client_params={**settings.client_params, "region_name": region})
        async with AsyncExitStack() as stack:
            return await self._learn((await self._open(stack, settings, self.config, self._send_prepared)).client)


async def _understand(request: UnsignedRequest, incoming: Incoming, timer: PhaseTimer, reader: Reader[Any]) -> Any:
    """What an answer says.

    Raises
    ------
    Refusal
        It says no, or is none that S3 gives.
    """
    if reader is not None and incoming.status < 300:
        if not _is_framed(incoming.headers):
            raise ConnectionError(_CUT)
        if incoming.headers.get("content-encoding", "").lower() in _COMPRESSED:
            raise ConnectionError("the answer is compressed on its way, which was asked not to be")
        check(request.operation, Answer(incoming.status, incoming.headers))
        return await reader(incoming, timer)
    refused = incoming.status >= 300
    limit = _MAX_LISTING_BYTES if request.operation.startswith("List") and not refused else MAX_ERROR_BYTES
    pieces: list[bytes] = []
    total = 0
    try:
        async for data in received(incoming, timer):
            pieces.append(data[: limit - total])
            total += len(data)
            if total >= limit:
                break
    except Exception:
        if not refused:
            raise
        # A store that refuses a body may reset the connection under it: what was heard counts.
    answer = Answer(incoming.status, incoming.headers, b"".join(pieces))
    try:
        check(request.operation, answer)
    except NotS3 as error:
        if answer.status == 200 and not answer.body and not _is_framed(incoming.headers):
            raise ConnectionError(_CUT) from error
        raise
    if isinstance(request.body, Body) and not request.body.passed:
        raise ConnectionError("the store has answered before it had all of the content")
    return answer


def _is_framed(headers: Mapping[str, str]) -> bool:
    """Whether an answer says where its body ends. One that was cut in its head does not, and may look whole."""
    return "content-length" in headers or "transfer-encoding" in headers


async def received(incoming: Incoming, timer: PhaseTimer) -> AsyncIterator[bytes]:
    while data := await incoming.readany():
        timer.received(len(data))
        yield data
