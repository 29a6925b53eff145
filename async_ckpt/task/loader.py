"""Listing a task's checkpoints, and loading them from this machine's disk or from a store."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import layout
from ..capture.link_back import LinkBack
from ..config import Config
from ..errors import IntegrityError, NotFound, StoreError, UsageError
from ..ranks import agreement, who
from ..spool.journal import COMMITTED
from ..spool.records import Admitted, torn_file
from ..stores import catalog
from ..stores.base import Store, StoreSpec
from ..system.undisturbed import undisturbed
from . import listing, lookup, restore
from .landing import Arrival
from .reference import CheckpointInfo
from .tracker import Tracker

log = logging.getLogger(__name__)

#: What of a collective checkpoint is loaded.
SHARDS = ("all", "own")


class Loader:
    """What a task sees of its checkpoints, those that are still on their way included."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._client = tracker, tracker.client
        self._spool, self._config, self._task = tracker.spool, tracker.config, tracker.task

    @undisturbed
    def list(
        self, *, name: str | None = None, attempt: int | str | None = None, within_task: bool = True
    ) -> list[CheckpointInfo]:
        """Checkpoints of this task (all attempts), or of its step in the namespace; see ``listing.choose``.

        Raises
        ------
        SpoolError
            This process has outlived its task.
        StoreError
            The store cannot be read.
        """
        self._tracker.check_attempt()
        folder = self._task.task_folder if within_task else self._task.scope_folder
        number = listing.check_attempt(attempt)
        on_disk = listing.on_disk([self._spool])
        stored = self._tracker.run(
            lambda s: catalog.list_references(s, folder, self._config, name=name, attempt=number)
        )
        return listing.choose(stored, on_disk, name=name, attempt=number)

    @undisturbed
    def load(
        self,
        reference: Mapping[str, Any] | str,
        path: str,
        *,
        shard: str = "all",
        clean: bool = False,
        files: Collection[str] | None = None,
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
        files : collection of str, optional
            Only these paths of it.
        first : StoreSpec, optional
            A store to look in before all others.

        Raises
        ------
        UsageError, NotFound, IntegrityError, StoreError, SnapshotError
            See ``restore``; ``path`` is as it was.
        """
        _checked(shard, clean, files)
        if clean and shard == "own":
            raise UsageError(
                "Each rank would take away what the others have loaded there: shard='own' has no clean load",
                hint="Remove the directory before the ranks load into it",
            )
        key = reference.get("key") if isinstance(reference, Mapping) else reference
        for item in self._tracker.pending(key):
            if layout.is_shard(item.reference):  # The others' are not here.
                if self._tracker.run(functools.partial(agreement.read_commit, reference=item.reference)) is None:
                    self._tracker.wait(item.id)
                break
            self._load_admitted(item, path, clean, files)
            return self._note_loaded(item.reference)
        own = self._own_rank if shard == "own" else None
        places = lookup.distinct(first, self._spool.store, lookup.of_reference(reference))
        loaded = load_from_first(
            places, reference, path, self._config, own, clean=clean, files=files, needed=self._spool.directory
        )
        return self._note_loaded(loaded)

    def _note_loaded(self, reference: dict[str, Any]) -> dict[str, Any]:
        if reference.get("pathspec") == self._task.pathspec:
            self._tracker.loaded = layout.identity(reference)
        self._spool.note_loaded(reference["key"])
        return reference

    def _own_rank(self, world: int) -> int:
        """Which of the ``world`` ranks that saved a checkpoint this process is now."""
        mine = who.find(self._task)
        if mine.world != world:
            raise UsageError(
                f"{world} ranks saved the checkpoint, and there are {mine.world} now: none has a shard of its own",
                hint="Load shard='all', and let each rank choose its files",
            )
        return mine.rank

    def _load_admitted(
        self, item: Admitted, path: str, clean: bool = False, files: Collection[str] | None = None
    ) -> None:
        """Load a checkpoint that is on its way, from the disk; or from the store, as far as it has come there."""
        links = LinkBack(self._client.lease_budget()) if self._client.is_guarded() else None
        store = self._spool.store
        needed = tuple(filter(None, (self._spool.directory, store.path_on_disk)))
        arrival = Arrival(clean, needed, tell_stale=files is None, files=files)
        try:
            restore.load_from_spool(
                item, path, self._config, links, functools.partial(self._client.announce, item), arrival
            )
            return
        except FileNotFoundError:
            pass  # It was committed in this moment, and removed here: it is in the store.
        except IntegrityError as error:
            # Files whose bytes are in the store are not guarded any more: the trainer may have rewritten one since.
            known = self._tracker.look().get(item.id)
            if known is None or not known.uploaded:
                if known is None or torn_file(item, known.files) is not None:
                    raise error
                self._tracker.wait(item.id)
        self._tracker.run(
            lambda store: restore.load_from_store(store, item.reference, path, self._config, arrival=arrival)
        )

    @undisturbed
    def load_newest(self, policy: str, path: str, shard: str = "all", *, again: bool = False) -> dict[str, Any] | None:
        """Load what a load policy calls for.

        Parameters
        ----------
        policy : str
            ``"fresh"``: the newest of this task. ``"eager"``: else the newest of this step in the scope. ``"none"``.
        again : bool
            In the middle of the attempt, so that what it has saved itself counts.

        Returns
        -------
        dict or None
            The metadata of what was loaded.
        """
        if policy == "none":
            return None
        if policy == "fresh" and self._task.attempt == 0 and not again and not self._was_begun_before():
            return None
        # Ranks' parts on this disk may complete a collective checkpoint once they are in the store.
        shards = _to_complete(self._spool.records.pending())
        self._tracker.wait_for_all(reversed(shards), self._config.settle_timeout_s)
        return self.load_first(self.candidates(policy), path, shard)

    def load_first(
        self, candidates: Iterable[Admitted | dict[str, Any]], path: str, shard: str
    ) -> dict[str, Any] | None:
        """Load the first of some that is there and intact. Returns its metadata; None where that is none of them."""
        for candidate in candidates:
            try:
                if isinstance(candidate, Admitted):
                    self._load_admitted(candidate, path)
                    return self._note_loaded(candidate.reference)
                return self.load(candidate, path, shard=shard)
            except (IntegrityError, NotFound) as error:
                log.warning(f"A checkpoint cannot be loaded, and the next older one is tried: {error}")
        return None

    def candidates(self, policy: str) -> Iterator[Admitted | dict[str, Any]]:
        """What to try, best first; the store's history is only listed when its newest cannot be loaded."""
        spooled = [
            item
            for item in reversed(self._spool.records.pending())
            if layout.is_latest(item.reference) and not layout.is_shard(item.reference)
        ]
        # The store is asked even where this disk has the newest that is known here: an attempt may have run on another
        # machine since. But where the store does not answer, and is not known to have anything newer, what is on this
        # disk is loaded.
        if spooled and spooled[0].order > self._newest_committed() and (why := self._why_silent()):
            log.warning(
                f"The store does not say what attempts on other machines may have saved since, so {spooled[0].id} is "
                f"loaded, the newest on this one: {why}"
            )
            yield from spooled
        task, scope, config = self._task, self._task.scope_folder, self._config
        searches = [(task.task_folder, functools.partial(catalog.newest_of_task, task=task, config=config))]
        if policy == "eager":
            searches.append((scope, functools.partial(catalog.newest_of_step, folder=scope, config=config)))
        for folder, newest in searches:
            stored = self._tracker.run(newest)
            yield from (item for item in spooled if stored is None or item.order > layout.order(stored))
            spooled = []  # Those are of this task.
            if stored is not None:
                yield stored
                older = self._tracker.run(functools.partial(catalog.list_references, folder=folder, config=config))
                yield from (data for data in older if layout.is_latest(data) and data["key"] != stored["key"])

    def _newest_committed(self) -> tuple[int, int]:
        """(attempt, version) of the newest that this machine has brought into the store, as far as its disk tells."""
        references = [item.reference for item in self._tracker.look().values() if item.state == COMMITTED]
        return max((layout.order(data) for data in references if data and layout.is_latest(data)), default=(-1, -1))

    def _why_silent(self) -> str:
        """Why the store does not answer now; empty: it does."""

        async def ask(store: Store) -> str:
            import anyio  # Late: few Metaflow processes that import this module ask a store.

            try:
                with anyio.fail_after(self._config.claim_wait_s):
                    await catalog.read_reference(store, self._task.task_folder, layout.LATEST)
            except TimeoutError:
                return f"no answer within {self._config.claim_wait_s:g} s"
            except StoreError as error:
                return str(error)
            return ""

        return self._tracker.run(ask)

    def _was_begun_before(self) -> bool:
        """Whether there may be something to resume from in a first attempt."""
        start = self._tracker.wait_for_start()
        return not start.first and (not start.alone or bool(self._spool.records.ids()))


def _to_complete(pending: Sequence[Admitted]) -> list[Admitted]:
    """Ranks' parts of checkpoints that may be committed yet. Where all ranks were on this machine, those who have not
    saved their part are dead by now: nobody waits for the parts of the others.
    """
    shards = [item for item in pending if layout.is_shard(item.reference)]
    saved = Counter(item.reference["key"] for item in shards)
    return [
        item
        for item in shards
        if item.reference.get("nodes", 1) > 1 or saved[item.reference["key"]] == item.reference["world"]
    ]


def load_outside(
    places: Sequence[StoreSpec], reference: Mapping[str, Any] | str, path: str, *, shard: str, clean: bool,
    files: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``load_from_first`` outside of a step, where nobody knows of ranks."""
    if _checked(shard, clean, files) == "own":
        raise UsageError("Outside of a step with @checkpoint nobody has a shard of its own", hint="Load shard='all'")
    return load_from_first(places, reference, path, Config.from_env(), clean=clean, files=files)


def _checked(shard: str, clean: bool, files: Collection[str] | None) -> str:
    """Return what of a collective checkpoint is to be loaded if it is one of ``SHARDS``; ``UsageError`` if not, and
    where the arguments of a load make no sense.
    """
    if shard not in SHARDS:
        raise UsageError(f"shard={shard!r} is unknown", hint=f"Use one of {', '.join(SHARDS)}")
    if isinstance(files, str):
        raise UsageError(f"files={files!r} is one text", hint=f"Use files=[{files!r}]")
    if clean and files is not None:
        raise UsageError(
            "A clean load of some files would take away the others", hint="Load all of them, or into a new directory"
        )
    return shard


def load_from_first(
    places: Sequence[StoreSpec],
    reference: Mapping[str, Any] | str,
    path: str,
    config: Config,
    own: Callable[[int], int] | None = None,
    *,
    clean: bool = False,
    files: Collection[str] | None = None,
    needed: str = "",
) -> dict[str, Any]:
    """Load a checkpoint from the first of some stores that has it; see ``restore.find_and_load`` and ``Arrival``.

    Raises
    ------
    NotFound, StoreError
        None of them has it, or lets it be read; names all of them with their reasons.
    TransientStoreError, UsageError, IntegrityError
        See ``lookup.first_answer``.
    """
    local = (spec.path_on_disk for spec in places)
    load = functools.partial(
        restore.find_and_load, reference=reference, destination=path, config=config, own=own,
        arrival=Arrival(clean, tuple(filter(None, [needed, *local])), tell_stale=files is None, files=files),
    )  # fmt: skip
    loaded, failed = lookup.first_answer(places, config, load)
    if loaded is not None:
        return loaded
    if len(failed) == 1:
        raise failed[0]
    kind = NotFound if any(isinstance(error, NotFound) for error in failed) else StoreError
    looked = "; ".join(f"{spec.root}: {error.what}" for spec, error in zip(places, failed, strict=True))
    hints = dict.fromkeys(error.hint for error in failed if error.hint)
    raise kind(f"The checkpoint is in none of the places where it may be. {looked}", hint=". ".join(hints))
