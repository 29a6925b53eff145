"""One cell of the table of faults: a fault, a call, TCP or TLS, the engine or the fallback; how it is tried and judged.

Judged in every cell, whatever the table says: what the caller is told is true of what is in the server, an error is a
``StoreError`` with words, nothing lasts longer than the limits allow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import botocore.session

from async_ckpt.config import Config
from async_ckpt.errors import StoreError, TransientStoreError
from async_ckpt.stores import retry
from async_ckpt.stores.retry import RetryStore
from async_ckpt.stores.s3 import S3Settings, boto3_transport
from async_ckpt.stores.s3.store import S3Store
from harness.s3.fault_calls import CALLS, PREFIX, Call, Scene, furnish
from harness.s3.fault_server import FaultServer, Turn
from harness.s3.faults import AtConnect, Inject
from harness.s3.memory_s3 import MemoryS3, Request
from harness.s3.servers import BUCKET, S3Server, self_signed

TCP, TLS = "tcp", "tls"
ENGINE, FALLBACK = "engine", "fallback"

#: The limits of the store under test, seconds; so short that a time-out can be tried often, so long that a busy machine
#: does not run into one.
CONNECT_S, ANSWER_S, STALL_S, COMPLETE_S = 1.0, 0.8, 0.8, 2.0
ATTEMPTS = 3
#: What sitting out one limit may take, and what everything else may take, on a slow machine.
WAIT_S = CONNECT_S + ANSWER_S + STALL_S + COMPLETE_S
SLACK_S = 15.0
#: How long connections may live on after the store was closed: a thread of the fallback ends with its time-out.
_CLOSING_S = COMPLETE_S + 1.0
#: After its limit a cell's server is closed, which ends whatever waits for it.
_GRACE_S = 5.0


@dataclass(frozen=True)
class Done:
    """The call succeeds (perhaps at a later try)."""


@dataclass(frozen=True)
class Declined:
    """``put_if`` says that something else is there."""


@dataclass(frozen=True)
class Refused:
    """The call fails, in words that this pattern finds (upper or lower case).

    Parameters
    ----------
    lasting : bool or None
        Whether it is an error for good; None: either.
    """

    words: str = "."
    lasting: bool | None = None


@dataclass(frozen=True)
class Either:
    """It succeeds, declines, or fails: the judgement that every cell gets is enough."""


Expected = Done | Declined | Refused | Either
DONE, EITHER = Done(), Either()


@dataclass
class World:
    """The servers of one cell: the one that misbehaves, and another one that has the same objects."""

    s3: MemoryS3
    server: FaultServer
    elsewhere: FaultServer
    #: Connections that the store had made when the fault began.
    kept: int = 0
    #: How many requests or connections the fault met.
    met: int = 0
    #: Requests before the call.
    before: int = 0
    #: What the first server does with every request, where a row says so.
    first: Callable[[Turn], bool] | None = None
    #: Sockets that are kept open until the end.
    held: list[socket.socket] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Parameters
    ----------
    inject : callable
        What happens to the requests that are meant.
    times : int or None
        To how many of them; None: to all.
    calls : tuple of str
        For which calls it is tried.
    expect, unless, fallback : Expected, mapping, Expected or None
        What comes of it, where a call is different, and where the fallback, which cannot read while it sends, is.
    paired : bool
        It is about what is said, not how it travels: the engine over TLS, the fallback over TCP are enough.
    noisy : bool
        It keeps the machine busy: nothing else should be tried beside it.
    lingers : bool
        The fallback leaves a thread and its connection behind, until the server ends it: nothing can end it here.
    waits : int
        How many time limits have to be sat out.
    first : int
        The number of the first request that is hit.
    meant : callable
        Which requests are meant; None: the call's own.
    at_connect : callable
        What happens to connections (``times`` of them), before a byte is read.
    prepare : callable
        Makes the world as it should be.
    warm : int
        The store makes so many calls side by side before.
    warm_too : bool
        The fault meets those as well.
    between : callable
        What happens after them.
    then : callable
        What is wrong afterwards, besides; empty where nothing is.
    seen : str
        Where others met it.
    """

    name: str
    inject: Inject | None = None
    times: int | None = 1
    calls: tuple[str, ...] = ()
    expect: Expected = DONE
    unless: Mapping[str, Expected] = field(default_factory=dict)
    fallback: Expected | None = None
    over: tuple[str, ...] = (TCP, TLS)
    paired: bool = False
    noisy: bool = False
    lingers: bool = False
    waits: int = 0
    first: int = 1
    meant: Callable[[Request], bool] | None = None
    at_connect: AtConnect | None = None
    prepare: Callable[[World], None] | None = None
    warm: int = 0
    warm_too: bool = False
    between: Callable[[World], None] | None = None
    then: Callable[[World, Scene], str] | None = None
    at_least_s: float = 0.0
    most_requests: int = 40
    most_sent_bytes: int = 200 << 20
    #: Whether what a failed upload began can be tidied up.
    tidies: bool = True
    #: Name of the host in the URL, whether its certificate is trusted, and which the server demands.
    host: str = "127.0.0.1"
    trusted: bool = True
    demands_certificate: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    seen: str = ""


@dataclass(frozen=True)
class Cell:
    fault: Fault
    call: Call
    over: str
    client: str

    @property
    def name(self) -> str:
        return f"{self.fault.name} / {self.call.name} / {self.over} / {self.client}"

    @property
    def expected(self) -> Expected:
        fault, fallback = self.fault, self.fault.fallback if self.client == FALLBACK else None
        return fault.unless.get(self.call.name, fallback or fault.expect)

    @property
    def limit_s(self) -> float:
        return SLACK_S + self.fault.waits * WAIT_S


@dataclass(frozen=True)
class Result:
    """What came of a cell; ``problem`` is empty where it is as it should be."""

    cell: Cell
    outcome: str
    problem: str
    requests: int
    seconds: float


def cells_of(fault: Fault) -> list[Cell]:
    """The cells of a row."""
    pairs = [(over, client) for over in fault.over for client in (ENGINE, FALLBACK)]
    if fault.paired and len(fault.over) > 1:
        pairs = [(TLS, ENGINE), (TCP, FALLBACK)]
    return [Cell(fault, CALLS[name], over, client) for over, client in pairs for name in fault.calls]


@contextlib.contextmanager
def short_pauses() -> Iterator[None]:
    """Retries come at once, and the description of S3 is read once for all clients."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(retry, "STORE_FIRST_PAUSE_S", 0.01))
        stack.enter_context(mock.patch.object(retry, "STORE_MAX_ASKED_PAUSE_S", 1.5))
        shared = functools.cache(botocore.session.create_loader)
        stack.enter_context(mock.patch.object(botocore.session, "create_loader", shared))
        yield


class Certificates:
    """A certificate for 127.0.0.1, and what servers need to show it."""

    def __init__(self, folder: Path) -> None:
        self.file, self._key = folder / "certificate.pem", folder / "key.pem"
        self_signed(self.file, self._key)

    def context(self, *, demanding: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self._key)
        if demanding:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.file)
        return context


def run_cell(cell: Cell, certificates: Certificates) -> Result:
    """Try one cell, in a loop of its own."""
    fault, s3 = cell.fault, MemoryS3()
    furnish(s3)
    tls = certificates.context(demanding=fault.demands_certificate) if cell.over == TLS else None
    other_tls = certificates.context() if cell.over == TLS else None
    with (
        tempfile.TemporaryDirectory(prefix="async-ckpt-cell-") as folder, FaultServer(s3, tls) as server,
        FaultServer(s3, other_tls) as elsewhere,
    ):  # fmt: skip
        world = World(s3, server, elsewhere)
        if fault.prepare is not None:
            fault.prepare(world)
        watchdog = threading.Timer(cell.limit_s + _GRACE_S, server.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            result = anyio.run(_run, cell, world, folder, str(certificates.file))
        finally:
            watchdog.cancel()
            for held in world.held:
                held.close()
    for failure in server.failures + elsewhere.failures:
        raise AssertionError(f"{cell.name}: the server failed") from failure
    return result


async def _run(cell: Cell, world: World, folder: str, certificate: str) -> Result:
    fault = cell.fault
    store = _open(cell, world, certificate)
    scene = Scene(store, world.s3, folder)
    before: list[StoreError] = []

    async def warm() -> None:
        try:
            await store.get_bytes("small")
        except StoreError as error:
            before.append(error)

    try:
        if fault.warm_too:
            _arm(cell, world)
        if fault.warm:
            async with anyio.create_task_group() as group:
                for _ in range(fault.warm):
                    group.start_soon(warm)
            with contextlib.suppress(StoreError):  # where the fault meets it as well
                await store.size("small")
        world.kept, world.before = len(world.server.connections), len(world.server.records)
        if fault.between is not None:
            await anyio.to_thread.run_sync(fault.between, world)
        if not fault.warm_too:
            _arm(cell, world)
        started, caught = time.monotonic(), None
        try:
            with anyio.fail_after(cell.limit_s):
                scene.value = await cell.call.run(scene)
        except Exception as error:  # Which kind it is is what is judged.
            caught = error
        seconds = time.monotonic() - started
        problem = _judge(cell, world, scene, caught, seconds)
        if before:
            problem = "; ".join(filter(None, (problem, f"{len(before)} calls before failed: {before[0]}")))
    finally:
        with anyio.CancelScope(shield=True):
            await store.aclose()
            left = await anyio.to_thread.run_sync(world.server.left_open, _CLOSING_S)
    if left and not (cell.fault.lingers and cell.client == FALLBACK):
        problem = "; ".join(filter(None, (problem, f"{left} connections were left open")))
    outcome = f"{type(caught).__name__}: {caught}" if caught else "done" if scene.value is not False else "declined"
    return Result(cell, outcome, problem, len(world.server.records) - world.before, seconds)


def _open(cell: Cell, world: World, certificate: str) -> RetryStore:
    fault = cell.fault
    known = {item.name for item in dataclasses.fields(Config)}
    limits = {
        "connect_timeout_s": CONNECT_S, "answer_timeout_s": ANSWER_S, "stall_timeout_s": STALL_S,
        "complete_timeout_s": COMPLETE_S, **fault.config,
    }  # fmt: skip
    config = Config(store_attempts=ATTEMPTS, **{name: value for name, value in limits.items() if name in known})
    params: dict[str, Any] = dict(S3Server(world.server.url.replace("127.0.0.1", fault.host), 0).client_params)
    if cell.over == TLS and fault.trusted:
        params["verify"] = certificate
    how = (boto3_transport.open_client,) if cell.client == FALLBACK else ()
    return RetryStore(S3Store(f"s3://{BUCKET}/{PREFIX}", S3Settings(params), config, *how), config)


def _arm(cell: Cell, world: World) -> None:
    """Let the fault begin."""
    fault, lock, seen = cell.fault, threading.Lock(), 0
    meant = fault.meant or cell.call.hits

    def counts(is_meant: bool) -> bool:
        nonlocal seen
        with lock:
            seen += is_meant
            hit = is_meant and seen >= fault.first and (fault.times is None or seen < fault.first + fault.times)
            world.met += hit
        return hit

    def inject(turn: Turn) -> bool:
        if fault.inject is None or not counts(meant(turn.request)):
            return False
        fault.inject(turn)
        return True

    world.server.inject = inject if world.first is None else world.first
    world.server.kept = world.kept
    if fault.at_connect is not None:
        at_connect = fault.at_connect
        world.server.at_connect = lambda connection: at_connect(connection) if counts(True) else None


def _judge(cell: Cell, world: World, scene: Scene, error: Exception | None, seconds: float) -> str:
    fault, expected = cell.fault, cell.expected
    requests = len(world.server.records) - world.before
    problems = [] if isinstance(expected, Either) else [_against(expected, error, scene.value)]
    if error is None:
        problems.append(cell.call.wrong(scene))
        told = dataclasses.replace(scene, value=True)
        if isinstance(expected, Done) and scene.value is False and cell.call.wrong(told):
            problems.append("declined, and nobody else wrote")
    elif isinstance(error, TimeoutError) and not isinstance(error, StoreError):
        problems.append("HANGS")
    elif not isinstance(error, StoreError):
        problems.append("AN ERROR OF ANOTHER LIBRARY")
    elif not str(error).strip():
        problems.append("an error without words")
    elif scene.moved:
        problems.append(f"{scene.moved} bytes of a failed call were reported")
    if fault.tidies and cell.call.name in ("part", "complete") and world.s3.uploads:
        problems.append("an upload was left open")
    if seconds > cell.limit_s:
        problems.append(f"took {seconds:.1f} s, and {cell.limit_s:g} s were allowed")
    if seconds < fault.at_least_s:
        problems.append(f"took {seconds:.1f} s, and should have waited {fault.at_least_s:g} s")
    if requests > fault.most_requests:
        problems.append(f"{requests} requests")
    if world.server.sent_bytes > fault.most_sent_bytes:
        problems.append(f"took {world.server.sent_bytes >> 20} MiB of an answer")
    if (fault.inject or fault.at_connect) and not world.met:
        problems.append("the fault was never met")
    if fault.then is not None:
        problems.append(fault.then(world, scene))
    return "; ".join(filter(None, problems))


def _against(expected: Expected, error: Exception | None, value: Any) -> str:
    if isinstance(expected, Refused):
        if error is None:
            return "succeeded"
        if not re.search(expected.words, str(error), re.IGNORECASE):
            return f"the words do not say {expected.words!r}"
        if expected.lasting is not None and expected.lasting == isinstance(error, TransientStoreError):
            return f"is {'not ' * expected.lasting}for good"
        return ""
    if error is not None:
        return "failed"
    if isinstance(expected, Declined) and value is not False:
        return "was not declined"
    return ""


def run_cells(cells: Iterable[Cell], certificates: Certificates) -> Iterator[Result]:
    """Try cells side by side, each in a thread with a loop of its own: many of those that only wait, few others."""
    with contextlib.ExitStack() as stack:
        pools = {
            (heavy, waits): stack.enter_context(ThreadPoolExecutor(at_once))
            for heavy, waits, at_once in ((False, False, 3), (False, True, 8), (True, False, 2), (True, True, 4))
        }

        def submit(cell: Cell) -> Future[Result]:
            busy = cell.call.heavy or cell.fault.noisy
            return pools[busy, cell.fault.waits > 0 and not cell.fault.noisy].submit(run_cell, cell, certificates)

        results = [submit(cell) for cell in cells]
        try:
            for result in results:
                yield result.result()
        finally:
            for result in results:
                result.cancel()
