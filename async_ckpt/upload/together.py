"""The uploader's part in a collective checkpoint, once this rank's shard is in the store: rank 0 waits for the others
and commits, the others wait for that. ``ranks/agreement.py`` says how they agree.

Everything here may be repeated from the start at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import anyio

from .. import layout
from ..config import GATHER_FIRST_S, GATHER_LAST_S, GATHER_SUSPICION_S, Config
from ..errors import StoreError, UsageError, WaitTimeout
from ..manifest import dump
from ..ranks import agreement
from ..ranks.agreement import COMMITTING, FAILED, Outcome, ReferenceDict
from ..stores.base import Store
from ..system.backoff import Backoff
from ..system.crash import crash_point
from .checkpoint import CheckpointWriter

#: How often a second all ranks together look into the store at most: with many ranks the first pause is longer.
_LOOKS_A_SECOND = 1000

Tell = Callable[[str], Awaitable[None]]


class Patience:
    """How long the others are waited for; it may be told to be less.

    ``decides``: when it is over, the checkpoint has failed for all. Else it is we who go, and what the others have
    saved may still be on its way.
    """

    def __init__(self, seconds: float, *, decides: bool = True) -> None:
        self._since = anyio.current_time()
        self._until = self._since + seconds
        self.decides = decides

    def shorten(self, seconds: float) -> None:
        """At most so long from now on."""
        self.decides = False
        self._until = min(self._until, anyio.current_time() + seconds)

    @property
    def waited_s(self) -> float:
        """Until now, in seconds."""
        return anyio.current_time() - self._since

    @property
    def is_over(self) -> bool:
        return anyio.current_time() >= self._until


class CollectiveCommit:
    """Brings the ranks of collective checkpoints together; works for one spool, with its writer."""

    def __init__(self, store: Store, writer: CheckpointWriter, config: Config) -> None:
        self._store, self._writer, self._config = store, writer, config
        #: Before which attempt and generation nothing is left.
        self._tidied = (0, 0)

    async def gather(self, reference: ReferenceDict, patience: Patience, tell: Tell) -> ReferenceDict:
        """See a checkpoint through to its commit.

        Parameters
        ----------
        reference : dict
            A shard's, whose files are in the store.
        patience : Patience
            How long to wait.
        tell : callable
            Hears what is waited for.

        Returns
        -------
        dict
            The metadata of the checkpoint, which is committed now.

        Raises
        ------
        UsageError
            It will never be committed: some rank did not save its shard in time, or died, or the shards do not belong
            together.
        WaitTimeout
            It is not committed in the time there was; somebody may do it yet.
        StoreError
            The store refuses.
        """
        committed = await agreement.read_commit(self._store, reference)
        if committed is not None and reference["rank"] == 0 and committed.get("node") != reference.get("node"):
            raise UsageError(agreement.same_rank(committed, reference))
        if committed is None:
            lead = self._commit if reference["rank"] == 0 else self._follow
            committed = await lead(reference, patience, tell)
        if reference["rank"] == 0:
            await self._tidy(reference)
        return committed

    async def _tidy(self, reference: ReferenceDict) -> None:
        """Remove what nobody needs any more, as far as that can be done now."""
        with contextlib.suppress(StoreError):  # It is committed all the same; the next attempt tries again.
            await agreement.drop_shards(self._store, reference, self._config, range(reference["world"]))
            now = layout.life(reference)
            if self._tidied < now:
                self._tidied = now
                await agreement.remove_leftovers(self._store, reference["pathspec"], now, self._config)

    async def _commit(self, reference: ReferenceDict, patience: Patience, tell: Tell) -> ReferenceDict:
        pauses = Backoff(0, GATHER_FIRST_S, GATHER_LAST_S)
        while missing := await agreement.missing_ranks(self._store, reference):
            gone = (await agreement.gone_ranks(self._store, reference)).intersection(missing)
            # What a task saved is in the store before it is said to be gone: one more look.
            missing = await agreement.missing_ranks(self._store, reference) if gone else missing
            if gone := gone.intersection(missing):
                why = f"{agreement.ranks_in_words(sorted(gone))} died before saving a part of the checkpoint"
                await self._give_up(reference, why)
                raise UsageError(why)
            # Those who do not decide may be told: rank 0, started again, gives up what was left before it.
            outcome = None if patience.decides else await agreement.read_outcome(self._store, reference)
            if outcome is not None and outcome.state == FAILED:
                raise UsageError(outcome.why)
            ranks = agreement.ranks_in_words(missing)
            await tell(f"waits for the shard{'s' if len(missing) > 1 else ''} of {ranks}")
            if patience.is_over:
                why = f"{ranks} did not save a part of the checkpoint, and {patience.waited_s:.0f} s were waited"
                if not patience.decides:
                    raise WaitTimeout(why)
                await self._give_up(reference, why)
                raise UsageError(why)
            await anyio.sleep(pauses.failed(anyio.current_time()))
        return await finish(self._store, self._writer, reference, self._config)

    async def _give_up(self, reference: ReferenceDict, why: str) -> None:
        outcome = await agreement.decide(self._store, reference, Outcome(FAILED, why))
        if outcome.state == COMMITTING:
            raise StoreError("It was decided that it is committed, and shards are missing", where=reference["key"])

    async def _follow(self, reference: ReferenceDict, patience: Patience, tell: Tell) -> ReferenceDict:
        first_s = max(GATHER_FIRST_S, reference["world"] / _LOOKS_A_SECOND)
        pauses = Backoff(0, first_s, max(GATHER_LAST_S, first_s))
        pause = 0.0
        while True:
            if pause > GATHER_SUSPICION_S:
                await self._give_up_without_first(reference)
            outcome = await agreement.read_outcome(self._store, reference)
            if outcome is not None and outcome.state == FAILED:
                raise UsageError(outcome.why)
            over = patience.is_over
            if outcome is not None or over:
                committed = await agreement.read_commit(self._store, reference)
                if committed is not None:
                    return committed
            if over:
                raise WaitTimeout(f"Rank 0 has not committed it, and {patience.waited_s:.0f} s were waited")
            await tell("waits for the commit by rank 0")
            pause = pauses.failed(anyio.current_time())
            await anyio.sleep(pause)

    async def _give_up_without_first(self, reference: ReferenceDict) -> None:
        """Where rank 0 has died without its shard, nobody else would ever decide."""
        if 0 in await agreement.gone_ranks(self._store, reference) and 0 in await agreement.missing_ranks(
            self._store, reference
        ):
            why = f"{agreement.ranks_in_words([0])} died before saving a part of the checkpoint"
            await agreement.decide(self._store, reference, Outcome(FAILED, why))


async def finish(store: Store, writer: CheckpointWriter, reference: ReferenceDict, config: Config) -> ReferenceDict:
    """Commit a checkpoint whose shards are all in the store.

    Raises
    ------
    UsageError
        They do not belong together, or it was given up before.
    CheckpointError
        The store refuses.
    """
    try:
        merged, manifest = agreement.merge(await agreement.read_shards(store, reference, config))
    except UsageError as error:
        await agreement.decide(store, reference, Outcome(FAILED, str(error)))
        raise
    crash_point("gather:before-outcome")
    outcome = await agreement.decide(store, reference, Outcome(COMMITTING))
    if outcome.state != COMMITTING:
        raise UsageError(outcome.why or "It was given up")
    crash_point("gather:after-outcome")
    await store.put_bytes(layout.parse_key(merged["key"]).manifest_key, dump(manifest.to_json()))
    await writer.commit([merged])
    return merged
