"""When this machine will be taken away, and which checkpoint can still make it.

The notice is a file that Metaflow writes on a spot instance (the time as ISO 8601, as the cloud said it), a SIGTERM, or
what the task tells.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence

from ..config import Config
from ..ipc.protocol import Message
from ..spool.journal import UPLOADING, order
from .plane import DataPlane
from .queue import Job, Queue
from .throughput import Throughput

#: How often the notice's file is looked for, in seconds.
_LOOK_S = 1.0

#: Of the time left, so much is planned with: rates vary, and a commit takes its round trips.
_SHARE = 0.8

#: So many of those that wait are named.
_MOST_NAMED = 20


class Notice:
    """The notice's file.

    Parameters
    ----------
    path : str
        Where it will be; empty: nowhere.
    grace_s : float
        Seconds left where it does not say when.
    """

    def __init__(self, path: str, grace_s: float) -> None:
        self._path, self._grace_s = path, grace_s
        self._next = 0.0

    def seconds_left(self) -> float | None:
        """Seconds until the machine goes, told once; None: nothing is known of that (or it was told)."""
        now = time.monotonic()
        if not self._path or now < self._next:
            return None
        self._next = now + _LOOK_S
        try:
            with open(self._path, errors="replace") as file:
                text = file.read(256)
        except OSError:
            return None
        left = _until(text.strip(), self._grace_s)
        if left <= 0:
            return None  # Another task's, or of a machine that was not taken after all.
        self._path = ""
        return left


def _until(text: str, unknown: float) -> float:
    try:
        when = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return unknown
    when = when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)
    return when.timestamp() - time.time()


def choose(newest_first: Sequence[Job], bytes_per_s: float, seconds: float) -> Job | None:
    """What to upload alone: the newest that is expected to be in the store in time; where none is, what is quickest.

    Parameters
    ----------
    bytes_per_s : float
        What the store takes; 0: unknown, and then the newest it is.
    seconds : float
        Until the end.
    """
    budget = bytes_per_s * seconds * _SHARE
    for job in newest_first:
        if not bytes_per_s or job.left <= budget:
            return job
    return min(newest_first, key=lambda job: job.left, default=None)


class LastCall:
    """Puts first what can still make it, once the end is known; the rest waits for time that is left over. An end that
    does not come changes nothing but the order.

    Parameters
    ----------
    tell : callable
        Gets the push for those who are to hear what is given up.
    """

    def __init__(
        self, queue: Queue, throughput: Throughput, plane: DataPlane, config: Config, tell: Callable[[Message], None]
    ) -> None:
        self._queue, self._throughput, self._plane, self._tell = queue, throughput, plane, tell
        self._grace_s = config.termination_grace_s
        self._notice = Notice(config.spot_notice_file, config.termination_grace_s)
        self._terminated = False
        self._until: float | None = None
        self._waiting: set[str] = set()

    def terminate(self) -> None:
        """From a signal handler: everything on this machine is told to end."""
        self._terminated = True

    def tick(self, now: float) -> None:
        """Look for news of the end, and whether it has passed (monotonic seconds)."""
        if self._terminated:
            self._terminated = False
            self.hear(self._grace_s, "SIGTERM")
        left = self._notice.seconds_left()
        if left is not None:
            self.hear(left, "the notice of the machine's end")
        if self._until is not None and now >= self._until:  # We live: all goes on as if nothing had been.
            self._until = None
            for identity in self._waiting:
                self._queue.resume(identity)
            self._waiting.clear()

    def hear(self, seconds: float, source: str) -> None:
        """So many seconds are left. The earliest end counts."""
        until = time.monotonic() + seconds
        if self._until is None or until < self._until:
            self._until = until
            self.choose_again(f"{source}: {seconds:.0f} s are left")

    @property
    def is_near(self) -> bool:
        """Whether an end is known that has not passed."""
        return self._until is not None

    def makes_wait(self, identity: str) -> bool:
        """Whether a checkpoint waits for time that is left over."""
        return identity in self._waiting

    def choose_again(self, why: str = "") -> None:
        """Something was saved, or is in the store: is another one to go first now? With ``why``: say what waits."""
        if self._until is None:
            return
        job = choose(self._queue.newest_first(), self._throughput.known, self._until - time.monotonic())
        if job is None:
            return
        self._waiting.discard(job.id)
        waiting = self._queue.put_first(job.id)
        for other in waiting:
            if other.state == UPLOADING:
                self._plane.tell({"op": "pause", "id": other.id})
            self._queue.hold(other.id)
            self._waiting.add(other.id)
        if waiting and why:
            ids = sorted((other.id for other in waiting), key=order, reverse=True)
            self._tell({"push": "given up", "id": job.id, "ids": ids[:_MOST_NAMED], "count": len(ids), "why": why})
