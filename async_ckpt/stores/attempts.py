"""Trying again: how often, how long, and what is said when it was not enough."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..config import Config
from ..errors import TransientStoreError
from .base import Progress

T = TypeVar("T")

#: Upper bound in seconds of the first pause; doubles with every attempt up to the cap.
BASE_S = 0.5
CAP_S = 20.0
#: A store that asks for a pause gets it, up to so many seconds.
MAX_ASKED_S = 60.0


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


def pause_s(attempt: int) -> float:
    """Seconds to wait after failed ``attempt`` (from 1): exponential, with full jitter so that clients spread out."""
    return random.uniform(0.0, min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 30)))


async def with_retries(call: Callable[[Progress], Awaitable[T]], config: Config, progress: Progress) -> T:
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
    attempt = 0
    while True:
        attempt += 1
        counted = Counted(progress)
        try:
            return await call(counted)
        except GaveUp:
            counted.take_back()
            raise
        except TransientStoreError as error:
            counted.take_back()
            now, pause = time.monotonic(), max(pause_s(attempt), min(error.pause_s, MAX_ASKED_S))
            deadline = min(deadline, now + config.store_deadline_s)
            if attempt >= config.store_attempts or now + pause >= deadline:
                raise GaveUp(
                    f"{error.what} (gave up after {attempt} attempt{'s' * (attempt > 1)} over {now - started:.1f} s)",
                    where=error.where,
                    hint=error.hint,
                ) from error
        except BaseException:
            counted.take_back()
            raise
        await anyio.sleep(pause)
