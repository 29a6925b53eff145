"""Requests to S3. Each is signed, sent, and ended if it takes too long; its answer may say how to send it again.

Everything goes through ``Engine.exchange``: content, which ``objects.py`` prepares, and requests that carry none
(``Engine.call``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from ...config import CREDENTIALS_TIMEOUT_S, FAILURE_SHARED_S, Config
from ...errors import CheckpointError, StoreError, TransientStoreError, UsageError
from ...system.concurrency import in_thread
from ..base import check_key
from . import S3Settings
from .answers import MAX_ERROR_BYTES, Answer, NotS3, Refusal, check
from .body import Body
from .credentials import Credentials, asked, botocore_chain
from .endpoint import PROBE, Endpoint, query
from .errors import TIME_OUTS, mapped
from .limits import AdaptiveLimiter, Limiter, Throttle
from .settings import Found, UserHeaders, is_loopback, look_up, sends_checksums, validates
from .signing import NO_CONTENT, Headers, sha256
from .transport import Dropped, Incoming, OpenTransport, PhaseTimer, SignedRequest, Timeouts, Transport, best_transport

T = TypeVar("T")

#: S3's limit for the name of an object, in bytes.
_MAX_NAME_BYTES = 1024
#: A page of a listing is at most so long.
_MAX_LISTING_BYTES = 8 << 20
#: How often one request is sent on to another endpoint, and how many redirects are followed to find the bucket.
_MOST_MOVES = 4
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

    transport: Transport
    timeouts: Timeouts
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
    open_transport : callable
        Makes what carries requests.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    def __init__(
        self, root: str, settings: Callable[[], S3Settings], config: Config,
        open_transport: OpenTransport = best_transport,
    ) -> None:  # fmt: skip
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not root.startswith("s3://") or not bucket:
            raise UsageError(
                f"{root!r} is not an S3 address", hint="Set METAFLOW_DATASTORE_SYSROOT_S3 to s3://bucket/prefix"
            )
        self.root = root.rstrip("/")
        self.bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._settings, self.config, self._open = settings, config, open_transport
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
        self._setup: Setup | None = None
        self._endpoint: Endpoint | None = None
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
        return f"/{quote(self.name(key), safe='/-_.~')}"

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
        if self._setup is None:
            async with self._opening:
                if self._setup is None:
                    with self._sharing_failure("open"), mapped(f"Cannot make a client for {self.root}", self.root):
                        settings = await self._ask_settings()
                        found = await self._look_up(settings)
                    self._setup = self._made(settings, found)
        return self._setup

    async def _ask_settings(self) -> S3Settings:
        return await asked(self._settings, CREDENTIALS_TIMEOUT_S, "Metaflow's S3 client")

    async def _look_up(self, settings: S3Settings) -> Found:
        return await in_thread(lambda: look_up(settings, self.config, self.bucket))

    def _made(self, settings: S3Settings, found: Found) -> Setup:
        config, endpoint = self.config, found.endpoint
        user_headers = UserHeaders(settings, config)
        if user_headers.needs_tls and not endpoint.base.startswith("https:") and not is_loopback(endpoint.base):
            raise UsageError(
                f"A key of one's own is sent with every request, and {endpoint.host} has no TLS",
                hint="Use https:// in METAFLOW_S3_ENDPOINT_URL",
            )
        source = settings.credentials or botocore_chain(settings.client_params)
        given = settings.client_params.get("config")
        transport = self._open(found.network, found.timeouts, config)
        self._endpoint = self._first_endpoint = endpoint
        slower = [transport.notice] if transport.notice else []
        if found.signs_content:
            slower.append("content is read twice, because it is signed: it travels over plain HTTP, or was asked for")
        if proxy := found.network.proxy(endpoint.base):
            slower.append(f"requests go through the proxy {proxy.rpartition('@')[2]}")
        self.notice = "; ".join(slower)
        return Setup(
            transport, found.timeouts, Credentials(source, CREDENTIALS_TIMEOUT_S), user_headers,
            sends_checksums(given, config), validates(given), found.signs_content,
        )  # fmt: skip

    async def aclose(self) -> None:
        """Close all connections; the next call would make others."""
        setup, self._setup = self._setup, None
        if setup is not None:
            await setup.transport.aclose()

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
            if isinstance(error.__cause__, Refusal) and error.__cause__.asks_to_slow_down:
                self.large.slow_down()
            raise

    async def call(
        self, verb: str, key: str, operation: str, method: str, params: Mapping[str, object] | None = None, *,
        headers: Mapping[str, str] | None = None, body: bytes | None = None,
    ) -> Answer:  # fmt: skip
        """Send a request that carries no content, and return its answer; errors are mapped (``mapping``).

        Parameters
        ----------
        key : str
            Key of the object that it is about; of a listing, the folder.
        params : mapping
            Of the query.
        """
        setup = await self.setup()
        with self.mapping(verb, key):
            path = "" if operation == "ListObjectsV2" else self.path(key)
            request = UnsignedRequest(
                operation, method, path + (query(params) if params else ""),
                {**setup.user_headers.headers(operation), **(headers or {})}, body, sha256(body or b""),
            )  # fmt: skip
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
        done: list[str] = []
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
                done.append("dropped")
                setup.transport.drop_connections()
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
        self, error: Refusal, request: UnsignedRequest, setup: Setup, endpoint: Endpoint, keys: Any, done: list[str]
    ) -> None:  # fmt: skip
        """Prepare what a refusal asks for, so that the request can be sent again; raise it if there is nothing to do.

        Parameters
        ----------
        done : list of str
            What was done before for this request: nothing is done twice, but for a few moves.
        """
        if isinstance(error, NotS3):
            if error.may_pass is None:
                error.may_pass = self._s3_answered
            self._forget_redirect()
        self._s3_answered = self._s3_answered or error.is_s3
        remedy = error.remedy
        if not remedy or done.count(remedy) >= (_MOST_MOVES if remedy == "move" else 1):
            raise error
        done.append(remedy)
        if remedy == "move":
            await self._move(setup, endpoint, request, error)
        elif remedy == "clock":
            self._offset_s = error.clock_offset_s or 0.0
        elif keys is None or not await self._renew(setup.credentials, keys, error):
            raise error

    async def _renew(self, credentials: Credentials, used: Any, error: Refusal) -> bool:
        """Whether there are other credentials than those that were refused."""
        ambiguous = error.code == "AccessDenied"
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
        body, timeouts = request.body, setup.timeouts
        headers = Headers(request.headers)
        headers["host"] = endpoint.host
        if body is not None or request.method in ("PUT", "POST"):
            headers["content-length"] = str(body.length if isinstance(body, Body) else len(body or b""))
        url = endpoint.url(request.path)
        if keys is not None:
            endpoint.signing.sign(request.method, url, headers, request.digest, keys, self._offset_s)
        headers["Accept-Encoding"] = "identity"
        if request.operation in _LONG:
            # It may send a head at once, and then a space now and then until it is done.
            longest = max(timeouts.answer_s, self.config.complete_timeout_s)
            timeouts = timeouts._replace(answer_s=longest, stall_s=max(timeouts.stall_s, longest))
        try:
            with PhaseTimer(timeouts) as timer:
                async with setup.transport.send(SignedRequest(request.method, url, headers, body), timer) as incoming:
                    return await _understand(request, incoming, timer, reader)
        except Exception as error:
            if isinstance(body, Body):
                body.give_up()
                if body.error is not None:
                    raise body.error from None
            if isinstance(error, TIME_OUTS):
                setup.transport.drop_connections()
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
                        if answer is not None and answer.remedy == "move":
                            said, path = answer, f"/{PROBE}"
                            continue
                        if answer is None or answer.is_s3 or not answer.is_page:
                            self._endpoint = endpoint
                            return
                        why = f"{endpoint.base} is no S3: {answer.message}"
                        break
            except LookupError:
                why = "it does not say where"
            raise kind(
                f"The bucket is elsewhere, says the store, and {why}", where=self.root,
                hint="Set METAFLOW_S3_ENDPOINT_URL, and AWS_DEFAULT_REGION, to where the bucket is",
            ) from said  # fmt: skip

    async def _probe(self, setup: Setup, endpoint: Endpoint) -> Refusal | None:
        """What an endpoint has against a request for an object that need not be there; None: nothing."""
        keys = await setup.credentials.get() if endpoint.signing.signs else None
        try:
            await self._send(UnsignedRequest("HeadObject", "HEAD", f"/{PROBE}", {}), setup, endpoint, keys)
        except Refusal as refusal:
            return refusal
        return None

    async def _next_endpoint(self, endpoint: Endpoint, said: Refusal, path: str) -> Endpoint:
        """The endpoint that an answer names; ``LookupError``: it names none."""
        region = said.region or endpoint.region
        found = endpoint.at(said.header("location"), path)
        if found is None and region != endpoint.region:
            settings = await self._ask_settings()
            params = {**settings.client_params, "region_name": region}
            found = (await self._look_up(replace(settings, client_params=params))).endpoint
        if found is None or found == endpoint:
            found = endpoint.at(said.endpoint, path) or endpoint
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
        answer = check(request.operation, answer)
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
