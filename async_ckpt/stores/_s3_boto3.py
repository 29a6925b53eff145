"""An S3 client that boto3's botocore alone makes, its calls in threads: where aiobotocore is missing or does not fit.

What goes through a client are the requests around content; content itself moves in threads in any case
(``_s3_bulk.py``). So little is lost: where everything has to go through the client (proxies, a client's certificate), a
part holds a thread while it moves.

A call that is cancelled is waited for, since a thread cannot be: one that sends content ends at once, others with their
answer or the client's time-outs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from botocore.config import Config as BotoConfig
from botocore.credentials import Credentials
from botocore.session import get_session

from ..config import Config
from ..errors import UsageError
from ._s3_body import PIECE_BYTES, BlockingBody, Body
from ._s3_pace import Fixed
from ._s3_settings import Fetched, Opened, client_params, merged_config, prepare
from ._s3_threads import Threads
from .base import S3Settings

T = TypeVar("T")


class FetchedCredentials(Credentials):  # type: ignore[misc]  # botocore has no types
    """Credentials that whichever thread signs fetches; their own ``credential_provider`` of a botocore session."""

    def __init__(self, fetched: Fetched) -> None:
        super().__init__("asked", "for", method="async-ckpt")  # never sent: see get_frozen_credentials
        self._fetched = fetched

    def load_credentials(self) -> FetchedCredentials:
        return self

    def get_frozen_credentials(self) -> Any:
        return self._fetched.get()


class ThreadClient:
    """A client of botocore with the methods of one of aiobotocore, as far as ``S3Store`` uses them.

    Parameters
    ----------
    client : object
        Botocore's.
    threads : Threads
        Where its calls run.
    """

    def __init__(self, client: Any, threads: Threads) -> None:
        self._client, self._threads = client, threads
        self.meta, self.exceptions = client.meta, client.exceptions

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self._client, operation)

        async def call(**params: Any) -> Any:
            body = params.get("Body")
            if isinstance(body, Body):
                body = params["Body"] = BlockingBody(body, asyncio.get_running_loop())
            stop = body.stop if isinstance(body, BlockingBody) else lambda: None
            answer = await _run(self._threads, lambda: method(**params), stop, _discard)
            if operation == "get_object":
                answer["Body"] = _Content(answer["Body"], self._threads)
            return answer

        return call


class _Content:
    """An answer's content as ``stream`` and its callers know it from aiobotocore."""

    def __init__(self, body: Any, threads: Threads) -> None:
        self._body, self._threads = body, threads
        self.content = self

    async def __aenter__(self) -> _Content:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._body.close()

    async def readany(self) -> bytes:
        """The next bytes; none at the end."""
        return await _run(self._threads, lambda: bytes(self._body.read(PIECE_BYTES)))


class _Signing:
    """Credentials of botocore, asked for from a loop that must not wait while they refresh."""

    def __init__(self, credentials: Any, threads: Threads) -> None:
        self._credentials, self._threads = credentials, threads

    async def get_frozen_credentials(self) -> Any:
        return await _run(self._threads, self._credentials.get_frozen_credentials)


async def open_client(stack: AsyncExitStack, settings: S3Settings, config: Config) -> Opened:
    """Make a client for the running loop; ``stack`` closes it, and its threads.

    Raises
    ------
    UsageError
        ``client_params`` holds something a client does not take.
    """
    params = client_params(settings)
    params["config"] = merged_config(BotoConfig, params.get("config"), config)
    most = config.max_parts_in_flight + config.files_in_flight
    threads = Threads(Fixed(most), most)
    stack.callback(threads.close)

    def make() -> tuple[Any, Fetched | None, Any]:
        session = get_session()
        fetched = None
        if settings.credentials is not None:
            fetched = Fetched(settings.credentials)
            session.register_component("credential_provider", FetchedCredentials(fetched))
        return session.create_client("s3", **params), fetched, session.get_config_variable("ca_bundle")

    try:
        client, fetched, bundle = await _run(threads, make)
    except TypeError as error:
        raise UsageError(
            f"An S3 client cannot be made from these settings: {error}", hint="Check METAFLOW_DATATOOLS_CLIENT_PARAMS"
        ) from error
    stack.callback(client.close)
    prepare(client, config)
    signing = client._request_signer._credentials
    verify = params.get("verify")
    return Opened(
        ThreadClient(client, threads), _Signing(signing, threads) if signing is not None else None,
        fetched.forget if fetched else None, bundle if verify is None else verify,
    )  # fmt: skip


async def _run(
    threads: Threads, function: Callable[[], T], stop: Callable[[], None] = lambda: None,
    discard: Callable[[T], None] = lambda _: None,
) -> T:  # fmt: skip
    """Call a function in a thread; where nobody waits for it any more: ``stop`` it, and ``discard`` what it returns."""
    returned: list[T] = []

    def call() -> T:
        result = function()
        returned.append(result)
        return result

    future = threads.run(call)
    try:
        return await future
    except asyncio.CancelledError:
        stop()
        await threads.ended(future)
        if future.done() and not future.cancelled():
            future.exception()  # Nobody wants to know.
        for result in returned:
            discard(result)
        raise


def _discard(answer: Any) -> None:
    """Give back the connection of an answer that nobody reads."""
    body = answer.get("Body") if isinstance(answer, dict) else None
    if body is not None:
        body.close()
