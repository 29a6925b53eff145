"""The half of a ``Checkpointer`` that reads: listing, and loading from the disk or the store."""

from __future__ import annotations

import abc
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .. import layout
from ..agent.claims import await_claim
from ..capture.link_back import Lender
from ..config import Config
from ..errors import CheckpointError, IntegrityError, NotFound, StoreError, TransientStoreError, UsageError
from ..ipc.client import AgentClient
from ..layout import newest
from ..ranks import agreement, who
from ..spool.claim import Start
from ..spool.journal import ADMITTED, COMMITTED, Progress
from ..spool.spool import Admitted, Spool, torn_file
from ..stores import catalog, open_store
from ..stores.base import Store, StoreSpec
from ..system.printable import to_stderr
from ..system.undisturbed import ended_by, go_on, reporter, undisturbed
from . import places, restore
from .landing import Arrival
from .reference import CheckpointInfo

T = TypeVar("T")

Report = Callable[[str], None]

#: What of a collective checkpoint is loaded.
SHARDS = ("all", "own")


class Reading(abc.ABC):
    """What a task sees of its checkpoints, those that are still on their way included."""

    spool: Spool
    config: Config
    task: layout.TaskInfo
    _client: AgentClient
    _report: Report
    #: Id of the checkpoint of this task that was loaded last; empty: none was.
    _loaded = ""

    @abc.abstractmethod
    def _look(self) -> dict[str, Progress]:
        """What the journal says."""

    @abc.abstractmethod
    def _check_attempt(self) -> None:
        """See that this process has not outlived its task."""

    @abc.abstractmethod
    def _guard(self, item: Admitted, leases: Mapping[str, int]) -> None:
        """Have the leases (path → descriptor) of a checkpoint's files held."""

    @abc.abstractmethod
    def _lease_budget(self) -> int:
        """How many more leases there may be."""

    @abc.abstractmethod
    def wait(self, identity: str, timeout_s: float | None = None) -> None:
        """Wait until a checkpoint is in the store."""

    @undisturbed
    def list(
        self, *, name: str | None = None, attempt: int | None = None, within_task: bool = True
    ) -> list[CheckpointInfo]:
        """Checkpoints of this task (all attempts), or of its step in the namespace, newest first.

        Each is its metadata and a ``state``: ``COMMITTED``, or how far one that is still on this machine has come.

        Raises
        ------
        SpoolError
            This process has outlived its task.
        StoreError
            The store cannot be read.
        """
        self._check_attempt()
        folder = self.task.task_folder if within_task else self.task.scope_folder
        on_disk = self.spool.pending()
        known = self._look() if on_disk else {}
        stored = self.run(lambda s: catalog.list_references(s, folder, self.config, name=name, attempt=attempt))
        return with_states(stored, on_disk, known, name=name, attempt=attempt)

    @undisturbed
    def load(
        self,
        reference: Mapping[str, Any] | str,
        path: str,
        *,
        shard: str = "all",
        clean: bool = False,
        first: StoreSpec | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint into the directory ``path``, from this machine's disk if it is still there, else from the
        task's store, else from where the reference says that it was saved. Returns its metadata.

        Parameters
        ----------
        shard : str
            Of a collective checkpoint: ``"all"`` ranks' files, or this rank's ``"own"``.
        clean : bool
            What is in ``path`` and not in the checkpoint goes; else it stays, and the log says so.
        first : StoreSpec, optional
            A store to look in before all others.

        Raises
        ------
        UsageError, NotFound, IntegrityError, StoreError, SnapshotError
            See ``restore``; ``path`` is as it was.
        """
        check_shard(shard)
        if clean and shard == "own":
            raise UsageError(
                "Each rank would take away what the others have loaded there: shard='own' has no clean load",
                hint="Remove the directory before the ranks load into it",
            )
        key = reference.get("key") if isinstance(reference, Mapping) else reference
        for item in self._pending(key):
            if layout.is_shard(item.reference):  # The others' are not here.
                if self.run(functools.partial(agreement.read_commit, reference=item.reference)) is None:
                    self.wait(item.id)
                break
            self._load_admitted(item, path, clean)
            return self._note_loaded(item.reference)
        own = self._own_rank if shard == "own" else None
        stores = places.distinct(first, self.spool.store, places.of_reference(reference, self.spool.store))
        loaded = load_from_first(
            stores, reference, path, self.config, own, clean=clean, needed=self.spool.directory, say=self._report
        )
        return self._note_loaded(loaded)

    def _note_loaded(self, reference: dict[str, Any]) -> dict[str, Any]:
        if reference.get("pathspec") == self.task.pathspec:
            self._loaded = layout.identity(reference)
        return reference

    def wait_for_key(self, key: str) -> None:
        """Wait until the checkpoint of this key is in the store, if it is on its way there from this machine.

        Raises
        ------
        StoreError, WaitTimeout
            As ``wait``.
        """
        for item in self._pending(key):
            self.wait(item.id)

    def _pending(self, key: Any) -> Iterator[Admitted]:
        return (item for item in self.spool.pending() if item.reference["key"] == key)

    def _own_rank(self, world: int) -> int:
        """Which of the ``world`` ranks that saved a checkpoint this process is now."""
        mine = who.find(self.task)
        if mine.world != world:
            raise UsageError(
                f"{world} ranks saved the checkpoint, and there are {mine.world} now: none has a shard of its own",
                hint="Load shard='all', and let each rank choose its files",
            )
        return mine.rank

    def _load_admitted(self, item: Admitted, path: str, clean: bool = False) -> None:
        """Load a checkpoint that is on its way, from the disk; or from the store, as far as it has come there."""
        lender = Lender(self._lease_budget()) if self._client.is_guarded() else None
        arrival = _arrival(clean, self._report, self.spool.store, self.spool.directory)
        try:
            restore.load_from_spool(item, path, self.config, lender, functools.partial(self._guard, item), arrival)
            return
        except FileNotFoundError:
            pass  # Committed and released in this moment: it is in the store.
        except IntegrityError as error:
            # A file whose bytes are in the store was let go, and the trainer may have rewritten it since.
            known = self._look().get(item.id)
            if known is None or not known.uploaded:
                if known is None or torn_file(item, known.files) is not None:
                    raise error
                self.wait(item.id)
        self.run(lambda store: restore.load_from_store(store, item.reference, path, self.config, arrival=arrival))

    def settle(self, items: Iterable[Admitted], limit_s: float) -> None:
        """Wait until these have been committed or have failed, ``limit_s`` seconds at most for all of them."""
        deadline = time.monotonic() + limit_s
        for item in items:
            with contextlib.suppress(CheckpointError):  # The agent reports what has failed.
                self.wait(item.id, max(deadline - time.monotonic(), 0.0))

    @undisturbed
    def load_newest(self, policy: str, path: str, report: Report, shard: str = "all") -> dict[str, Any] | None:
        """Load what a load policy calls for.

        Parameters
        ----------
        policy : str
            ``"fresh"``: the newest of this task. ``"eager"``: else the newest of this step in the scope. ``"none"``.
        report : callable
            Hears of damaged checkpoints that were passed over.

        Returns
        -------
        dict or None
            The metadata of what was loaded.
        """
        if policy == "none" or (policy == "fresh" and self.task.attempt == 0 and not self._was_begun_before()):
            return None
        report = reporter(report)
        # Shards on this disk may come to a whole checkpoint, once they are in the store.
        shards = [item for item in self.spool.pending() if layout.is_shard(item.reference)]
        self.settle(reversed(shards), self.config.settle_timeout_s)
        for candidate in self.candidates(policy):
            try:
                if isinstance(candidate, Admitted):
                    self._load_admitted(candidate, path)
                    return self._note_loaded(candidate.reference)
                return self.load(candidate, path, shard=shard)
            except (IntegrityError, NotFound) as error:
                report(f"A checkpoint cannot be loaded, and the next older one is tried: {error}")
        return None

    def candidates(self, policy: str) -> Iterator[Admitted | dict[str, Any]]:
        """What to try, best first; the store's history is only listed when its newest cannot be loaded."""
        spooled = [
            item
            for item in reversed(self.spool.pending())
            if item.reference["latest"] and not layout.is_shard(item.reference)
        ]
        # Also where the newest of them follows on all that is known here: somebody may have begun an attempt on another
        # machine since. A store that does not answer is not waited for, as long as there is something to go on from,
        # and nothing newer is known to be there.
        if spooled and spooled[0].order > self._newest_committed() and (why := self._why_silent()):
            self._report(
                f"The store does not say what attempts on other machines may have saved since, so {spooled[0].id} is "
                f"loaded, the newest on this one: {why}"
            )
            yield from spooled
        folders = [(self.task.task_folder, False)] + ([(self.task.scope_folder, True)] if policy == "eager" else [])
        for folder, by_age in folders:
            stored = self.run(functools.partial(self._newest, folder))
            if not by_age:
                for item in spooled:
                    if stored is None or item.order > layout.order(stored):
                        yield item
            if stored is not None:
                yield stored
                older = self.run(functools.partial(catalog.list_references, folder=folder, config=self.config))
                older = [data for data in older if data.get("latest", True) and data["key"] != stored["key"]]
                yield from newest.newest_first(older)

    def _newest_committed(self) -> tuple[int, int]:
        """(attempt, version) of the newest that this machine has brought into the store, as far as its disk tells."""
        references = [item.reference for item in self._look().values() if item.state == COMMITTED]
        return max((layout.order(data) for data in references if data and data.get("latest", True)), default=(-1, -1))

    def _why_silent(self) -> str:
        """Why the store does not answer now; empty: it does."""

        async def ask(store: Store) -> str:
            import anyio  # Late, as below.

            try:
                with anyio.fail_after(self.config.claim_wait_s):
                    await catalog.read_reference(store, self.task.task_folder, layout.LATEST)
            except TimeoutError:
                return f"no answer within {self.config.claim_wait_s:g} s"
            except StoreError as error:
                return str(error)
            return ""

        return self.run(ask)

    def started(self, limit_s: float | None = None) -> Start:
        """Which start of the attempt this is: the agent has asked the store, or it is waited for.

        Parameters
        ----------
        limit_s : float, optional
            How many seconds at most; default: see ``await_claim``.

        Raises
        ------
        SpoolError
            The spool cannot be read or written.
        """
        return self.spool.start or await_claim(self._client, self.spool, self.config, self._report, limit_s)

    def _was_begun_before(self) -> bool:
        """Whether there may be something to resume from in a first attempt."""
        start = self.started()
        return not start.first and (not start.alone or bool(self.spool.ready_ids()))

    async def _newest(self, folder: str, store: Store) -> dict[str, Any] | None:
        if folder == self.task.task_folder:
            return await catalog.newest_of_task(store, self.task, self.config)
        return await catalog.newest_of_step(store, folder, self.config)

    def run(self, function: Callable[[Store], Awaitable[T]]) -> T:
        """Do something with the task's store; see ``run_with_store``."""
        return run_with_store(self.spool.store, self.config, function)


def with_states(
    stored: Iterable[Mapping[str, Any]], on_disk: Iterable[Admitted], known: Mapping[str, Progress], *,
    name: str | None, attempt: int | None,
) -> list[CheckpointInfo]:  # fmt: skip
    """What is in the store and what is on its way there, each once and with its ``state``, newest first.

    ``known`` is what the journal says of those on the disk; ``name`` and ``attempt`` choose, if they are not None.
    """
    found = {data["key"]: CheckpointInfo(data, state=COMMITTED) for data in stored}
    for item in on_disk:
        state = known[item.id].state if item.id in known else ADMITTED
        found.setdefault(item.reference["key"], CheckpointInfo(item.reference, state=state))
    return newest.newest_first(
        data
        for data in found.values()
        if name in (None, data.name) and (attempt is None or layout.order(data)[0] == attempt)
    )


def check_shard(shard: str) -> str:
    """Return what of a collective checkpoint is to be loaded if it is one of ``SHARDS``; ``UsageError`` if not."""
    if shard not in SHARDS:
        raise UsageError(f"shard={shard!r} is unknown", hint=f"Use one of {', '.join(SHARDS)}")
    return shard


def load_from_first(
    stores: Sequence[StoreSpec],
    reference: Mapping[str, Any] | str,
    path: str,
    config: Config,
    own: Callable[[int], int] | None = None,
    *,
    clean: bool = False,
    needed: str = "",
    say: Report = to_stderr,
) -> dict[str, Any]:
    """Load a checkpoint from the first of some stores that has it; see ``restore.find_and_load`` and ``Arrival``.

    Raises
    ------
    NotFound, StoreError
        None of them has it, or lets it be read; names all of them with their reasons.
    TransientStoreError
        One of them is out of reach at this time: it may have what the next ones have not, so those are not asked.
    UsageError, IntegrityError
        The reference is none, or the checkpoint is damaged.
    """
    failed: list[StoreError] = []
    for spec in stores:
        try:
            if spec.kind in places.KINDS:
                load = functools.partial(
                    restore.find_and_load, reference=reference, destination=path, config=config, own=own,
                    arrival=_arrival(clean, say, spec, needed),
                )  # fmt: skip
                return run_with_store(spec, config, load)
            failed.append(StoreError(f"Stores of the kind {spec.kind!r} cannot be read", where=spec.root))
        except (IntegrityError, TransientStoreError):
            raise
        except StoreError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    raise places.in_none_of(stores, failed)


def _arrival(clean: bool, say: Report, store: StoreSpec, needed: str) -> Arrival:
    local = [store.root] if store.kind == "local" else []
    return Arrival(clean, say, tuple(filter(None, [needed, *local])))


def list_from_first(
    stores: Sequence[StoreSpec], listing: Callable[[Store], Awaitable[list[dict[str, Any]]]], config: Config
) -> list[dict[str, Any]]:
    """The first listing of some stores that is not empty; an empty one where none has anything.

    Raises
    ------
    StoreError
        One of them cannot be listed, and the others have nothing; or it is out of reach at this time.
    """
    failed: list[StoreError] = []
    for spec in stores:
        try:
            found = run_with_store(spec, config, listing)
        except TransientStoreError:
            raise
        except StoreError as error:
            failed.append(error)
            continue
        if found:
            return found
    if failed:
        raise failed[0]
    return []


def run_with_store(spec: StoreSpec, config: Config, function: Callable[[Store], Awaitable[T]]) -> T:
    """Open a store, call an asynchronous function with it, close it; in a thread, so that a caller's event loop does
    not matter.
    """

    async def call() -> T:
        store = open_store(spec, config)
        try:
            return await function(store)
        finally:
            await store.aclose()

    # Late: every Metaflow process imports this module, few of them ask a store.
    from concurrent.futures import CancelledError

    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        answer = portal.start_task_soon(call)
        with ended_by(answer.cancel):
            try:
                return answer.result()
            except CancelledError:
                go_on()
                raise
