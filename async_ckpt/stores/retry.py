"""Trying again what failed in a way that may pass: one request, or every call of a store.

A store retries single requests with ``with_retries`` where one call takes thousands of them, and would otherwise never
get through a network that loses one in a hundred. ``RetryStore`` does the same for whole calls.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import anyio

from ..config import STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S, STORE_MAX_ASKED_PAUSE_S, Config
from ..errors import TransientStoreError
from ..system.backoff import Backoff
from .base import ListedObject, Progress, Store, Wrapper, no_progress

T = TypeVar("T")


class GaveUp(TransientStoreError):
    """Every attempt failed. What failed may still pass one day, but nobody above should start over at once."""


class Counted:
    """A Progress that can take back what a failed attempt reported, so that totals stay right."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.total = progress, 0

    def __call__(self, count: int) -> None:
        self.total += count
        self._progress(count)

    def take_back(self) -> None:
        """Report everything so far as a negative count."""
        if self.total:
            self._progress(-self.total)
            self.total = 0


async def with_retries(
    call: Callable[[Progress], Awaitable[T]], config: Config, progress: Progress = no_progress
) -> T:  # fmt: skip
    """Await ``call(progress)`` until it succeeds, fails for good, or the limits of ``config`` are reached.

    The deadline counts from the first failure, so that a long transfer is not robbed of its second attempt; an attempt
    that runs is never cut (the store's own time-outs end one that hangs).

    Raises
    ------
    GaveUp
        ``store_attempts`` or ``store_deadline_s`` is used up; says how many attempts over how long and the last reason.
    StoreError
        As ``call`` does, at once.
    """
    started, deadline = time.monotonic(), float("inf")
    pauses = Backoff(0, STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S, jitter=True)
    while True:
        counted = Counted(progress)
        try:
            return await call(counted)
        except GaveUp:
            counted.take_back()
            raise
        except TransientStoreError as error:
            counted.take_back()
            now = time.monotonic()
            pause = max(pauses.failed(now), min(error.pause_s, STORE_MAX_ASKED_PAUSE_S))
            deadline = min(deadline, now + config.store_deadline_s)
            tries = pauses.count
            if tries >= config.store_attempts or now + pause >= deadline:
                raise GaveUp(
                    f"{error.what} (gave up after {tries} attempt{'s' * (tries > 1)} over {now - started:.1f} s)",
                    where=error.where, hint=error.hint,
                ) from error  # fmt: skip
        except BaseException:
            counted.take_back()
            raise
        await anyio.sleep(pause)


class RetryStore(Wrapper):
    """Retries every call of ``store`` on ``TransientStoreError``; see ``with_retries``.

    Bytes that a failed attempt reported are taken back (a negative count), so that a caller's total stays right.

    Parameters
    ----------
    store : Store
        Any store; closed with this one.
    config : Config
        ``store_attempts`` (the first included) and ``store_deadline_s`` (seconds from the first failure on).

    Raises
    ------
    GaveUp
        From every method: the limits are used up. Says how many attempts over how long and the last reason.
    """

    def __init__(self, store: Store, config: Config) -> None:
        super().__init__(store)
        self._config = config

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        return await with_retries(call, self._config, progress)

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        entries = self._store.list(prefix, beginning)

        async def first(_: Progress) -> ListedObject | None:
            nonlocal entries
            try:
                return await anext(entries, None)
            except TransientStoreError:
                entries = self._store.list(prefix, beginning)  # A generator that raised is finished.
                raise

        # Only the beginning: after the first entry a second try would hand out some of them twice.
        entry = await with_retries(first, self._config)
        try:
            while entry is not None:
                yield entry
                entry = await anext(entries, None)
        except TransientStoreError as error:
            raise GaveUp(f"{error.what} (in the middle of a listing)", where=error.where, hint=error.hint) from error
