"""What clients are told of how far everything is."""

from __future__ import annotations

from ..config import Config
from ..ipc.protocol import Message
from .backlog import why_full
from .child import Child
from .queue import Queue
from .throughput import Throughput

#: So many failed checkpoints are named, and so many errors remembered.
MAX_ERRORS = 20


class Answers:
    """See the module's docstring."""

    def __init__(self, queue: Queue, worker: Child, throughput: Throughput, config: Config) -> None:
        self._queue, self._worker, self._throughput, self._config = queue, worker, throughput, config

    def flush(self) -> Message:
        """To whoever waits for all."""
        failed = self._queue.failed()
        return {
            "pending": self._queue.pending,
            "pending_bytes": self._queue.pending_bytes,
            "bytes_per_s": self._throughput.bytes_per_s(),
            "why": self._why_waiting(),
            "failed": [[job.id, job.why] for job in failed[-MAX_ERRORS:]],
            "failed_count": len(failed),
        }

    def _why_waiting(self) -> str:
        """What holds up the oldest that says so; empty: nothing."""
        if self._worker.trouble:
            return f"no uploader can be had: {self._worker.trouble}"
        return next((f"{job.id}: {job.why}" for job in self._queue.in_line() if job.why), "")

    def state(self, identity: str) -> Message:
        """To whoever asks for one checkpoint."""
        job = self._queue.jobs.get(identity)
        return {"state": job.state, "why": job.why} if job else {"state": None, "why": "unknown to this agent"}

    def room(self, message: Message, *, late: bool) -> Message | None:
        """To whoever would save; None: there is no room yet."""
        why = why_full(self._queue.pending, self._queue.open_bytes, str(message.get("folder")), self._config)
        return {"full": why} if late or not why else None
