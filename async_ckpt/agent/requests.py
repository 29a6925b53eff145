"""What clients say to the agent over its socket, and what they are answered; ``ipc/protocol.py`` lists it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, ClassVar

from ..config import CARD_TEXT, DEATHS_OF_AGENT, MAX_STEPS, PACE_EXPOSURE_SHARE, WAITS_AGAIN_S
from ..ipc import protocol
from ..ipc.protocol import Message
from ..ipc.server import Connection
from ..spool.journal import FINAL
from ..system.clock import read_moment
from ..system.printable import visible
from .backlog import why_full
from .checkpoints import MAX_ERRORS, Checkpoints
from .dispatcher import Dispatcher
from .exposure import next_words, until_durable
from .idleness import Idleness
from .parts import Parts
from .questions import MAX_QUESTIONS, Questions

#: Whoever asks this trains no more until it is answered.
_WAITING = {
    "flush": "the task waits until everything is stored",
    "wait": "somebody waits for a checkpoint",
    "room": "a save waits for room",
}

_YEAR_S = 365 * 24 * 3600


class Requests:
    """See the module's docstring."""

    def __init__(self, parts: Parts, checkpoints: Checkpoints, dispatcher: Dispatcher) -> None:
        self._spool, self._config, self._queue, self._journal = parts.spool, parts.config, parts.queue, parts.journal
        self._uploader, self._leases, self._owners, self._starts = (
            parts.uploader, parts.leases, parts.owners, parts.starts,
        )  # fmt: skip
        self._socket_saves, self._last_call, self._throughput = parts.socket_saves, parts.last_call, parts.throughput
        self._exposure, self._pace, self._clock = parts.exposure, parts.pace, parts.clock
        self._card, self._retaining, self._annotating = parts.card, parts.retaining, parts.annotating
        self._checkpoints, self._dispatcher = checkpoints, dispatcher
        self._idleness = Idleness()
        #: Until when somebody counts as waiting, as it asks again and again, and what for.
        self._waits = -math.inf, ""
        #: Those that are answered once something has come about.
        self.questions = Questions(self._answer, parts.clock)

    def on_message(self, connection: Connection, message: Message, fds: list[int]) -> None:
        """Do what a client asks."""
        op = message.get("op")
        if op == "admit" and _is_admit(message, fds):
            # Read even if known: a scan may have found it before its leases came.
            item = self._checkpoints.find(str(message.get("id")))
            self._leases.take(item, connection, message, fds)
            self._dispatcher.start()
            return
        for fd in fds:
            os.close(fd)
        known = self.OPERATIONS.get(op) if isinstance(op, str) else None
        if known is None:
            _refuse(connection, message, f"The operation {op!r} is unknown, or lacks a field")
        else:
            known(self, connection, message)

    def on_close(self, connection: Connection) -> None:
        """A client is gone."""
        self.questions.forget(connection)
        self._owners.leave(connection)

    def _on_hello(self, connection: Connection, message: Message) -> None:
        if message.get("v") != protocol.VERSION:
            _refuse(connection, message, f"This agent speaks version {protocol.VERSION}")
            connection.close()
            return
        connection.greeted = True
        if message.get("owner"):
            is_later = self._owners.come(connection, message)
            self._starts.begin(self._owners.attempt, connection.pid, self._owners.gang_leader_pid)
            began = read_moment(message.get("began"))
            self._exposure.begin(self._owners.attempt, began, self._queue.waiting())
            self._take_access(message.get("access"))
            self._card.begin(message.get("card"))
            if is_later:
                self._dispatcher.gather_in(self._config.collective_grace_s)
            # A new attempt: what the store refused before gets another chance; what kills agents only once an attempt.
            for job in self._queue.failed():
                if job.item is not None and (is_later or job.deaths < DEATHS_OF_AGENT):
                    self._queue.retry(job.id)
        _reply(connection, message, {"v": protocol.VERSION, "pid": os.getpid()})
        if message.get("owner"):
            for push in self._owners.news():
                connection.send(push)

    def _take_access(self, access: Any) -> None:
        """Open the store from now on as a later attempt does: the keys of the one that started this agent may have
        expired. What is under way begins anew, with an uploader that inherits these.
        """
        name = self._spool.store.options.get("access_from")
        if isinstance(name, str) and isinstance(access, str) and os.environ.get(name) != access:
            os.environ[name] = access
            self._uploader.renew()

    def _on_bye(self, connection: Connection, message: Message) -> None:
        over = message.get("over") is not False
        if over and connection.is_owners and isinstance(message.get("keys"), list):
            self._retaining.task_ended(_keys(message))
        self._owners.say_goodbye(connection, over=over)

    def _on_annotated(self, connection: Connection, message: Message) -> None:
        self._annotating.look_again()

    def _on_needed(self, connection: Connection, message: Message) -> None:
        if connection.is_owners:
            self._retaining.on_answer(_keys(message))

    def _on_deadline(self, connection: Connection, message: Message) -> None:
        self._last_call.hear(_seconds(message.get("seconds"), self._config.termination_grace_s), "SIGTERM")
        _reply(connection, message, {"first": self._last_call.first})

    def _on_save(self, connection: Connection, message: Message) -> None:
        if self._owners.over:
            why = "The step has ended: nothing can be saved any more. Save before the step returns."
            _reply(connection, message, {"error": why, "kind": "UsageError"})
            return
        limit = self._config.backlog_timeout_s + self._config.reply_timeout_s
        self._socket_saves.ask(connection, message, _seconds(message.get("timeout_s"), limit))

    def _on_steps(self, connection: Connection, message: Message) -> None:
        times = message.get("times")
        if isinstance(times, list) and len(times) <= MAX_STEPS and all(map(_is_duration, times)):
            self._pace.slowdown.heard(connection.pid, times, self._clock.monotonic())
        else:
            _refuse(connection, message, f"times are at most {MAX_STEPS} numbers of seconds above 0")

    def _on_state(self, connection: Connection, message: Message) -> None:
        _reply(connection, message, self._state(str(message.get("id"))))

    def _on_status(self, connection: Connection, message: Message) -> None:
        status = {
            **self._flush(),
            "exposure": self._exposure_now(),
            "pid": os.getpid(),
            "uploader_pid": self._uploader.pid,
            "committed": self._queue.committed,
            "last_committed": self._queue.last_committed,
            "bytes_copied": self._dispatcher.bytes_copied,
            "pace": {
                **self._pace.order._asdict(),
                "slowdown": self._pace.slowdown.share,
                "pressure": self._pace.slowdown.pressure,
            },
            **self._leases.facts(),
            "socket_saves": self._socket_saves.count,
            "errors": list(self._checkpoints.errors),
            "warnings": [*self._journal.warnings, *self._owners.notices],
        }
        _reply(connection, message, status)

    def _on_question(self, connection: Connection, message: Message) -> None:
        if self.questions.is_full(connection):
            why = f"{MAX_QUESTIONS} questions of this connection wait for their answers: no more may"
            _refuse(connection, message, why)
            return
        if message["op"] == "flush":
            if "gather_s" in message:
                self._dispatcher.gather_in(_seconds(message["gather_s"], self._config.collective_grace_s))
            self._checkpoints.scan()
            again = self._queue.jobs.get(str(message.get("again")))
            if again is not None and again.item is not None:
                self._queue.retry(again.id)
            self._dispatcher.start()
        self.questions.add(connection, message, _seconds(message.get("timeout_s"), self._config.reply_timeout_s))

    #: What clients may ask for, but for "admit", which brings descriptors.
    OPERATIONS: ClassVar[dict[str, Callable[[Requests, Connection, Message], None]]] = {
        "hello": _on_hello, "state": _on_state, "status": _on_status, "save": _on_save, "bye": _on_bye,
        "deadline": _on_deadline, "steps": _on_steps, "wait": _on_question, "flush": _on_question, "room": _on_question,
        "claim": _on_question, "needed": _on_needed, "annotated": _on_annotated,
    }  # fmt: skip

    def _answer(self, message: Message, first: bool, late: bool) -> Message | None:
        """What somebody is told who waits; None: not yet. The spool is looked into the ``first`` time only."""
        op = message["op"]
        if op == "flush":
            return self._flush() if late or not (self._queue.pending or self._annotating.left) else None
        if op == "claim":
            attempt = message.get("attempt")
            return self._starts.answer(attempt if isinstance(attempt, int) else self._owners.attempt, late=late)
        if op == "wait":
            state = self._state(str(message.get("id")), look=first)
            return state if late or state["state"] in FINAL else None
        why = why_full(self._queue.pending, self._queue.open_bytes, str(message.get("folder")), self._config)
        return {"full": why} if late or not why else None

    def why_hurry(self) -> str:
        """Why everything is to be sent as fast as can be; empty: there is no reason."""
        if self._config.pace == "full":
            return "pace=full was asked for"
        if not len(self._owners):
            return "the task is gone"
        if self._last_call.is_known:
            return "the end of this machine is known"
        now = self._clock.monotonic()
        asked = next((why for op, why in _WAITING.items() if self.questions.has(op)), "")
        if asked:
            self._waits = now + WAITS_AGAIN_S, asked
        if now < self._waits[0]:
            return self._waits[1]
        if self._is_exposure_near():
            return "max_exposure is near"
        if full := why_full(self._queue.pending, self._queue.open_bytes, self._spool.directory, self._config):
            return f"no save would find room: {full}"
        ours = [os.getpid(), *filter(None, [self._uploader.pid])]
        if self._queue.uploading and self._idleness.look(now, self._owners.pids, ours):
            return "" if self._pace.slowdown.is_training(now) else "the task does nothing that could be slowed down"
        return ""

    def _state(self, identity: str, *, look: bool = True) -> Message:
        if look and identity not in self._queue.jobs:
            self._checkpoints.take_in(identity)
        job = self._queue.jobs.get(identity)
        return {"state": job.state, "why": job.why} if job else {"state": None, "why": "unknown to this agent"}

    def _flush(self) -> Message:
        """How far everything is."""
        failed = self._queue.failed()
        return {
            "pending": self._queue.pending,
            "pending_bytes": self._queue.pending_bytes,
            "bytes_per_s": self._throughput.bytes_per_s(),
            "why": self._why_waiting(),
            "annotations": self._annotating.left,
            "failed": [[job.id, job.why] for job in failed[-MAX_ERRORS:]],
            "failed_count": len(failed),
        }

    def _exposure_now(self) -> Message:
        """What would be lost now."""
        seconds, why = self._until_durable()
        loss = self._exposure.loss(self._queue.waiting())
        return {**loss._asdict(), "next_durable_s": seconds, "next_durable_why": why}

    def facts(self) -> Message:
        """What the card says of this moment."""
        uploading = [
            {
                "name": visible(job.name, CARD_TEXT), "version": job.order[1], "done": min(job.sent, job.size),
                "size": job.size,
            }
            for job in self._queue.uploading
        ]  # fmt: skip
        now = {
            **self._exposure_now(), "rate": self._throughput.bytes_per_s(),
            "pace": visible(self._pace.order.why, CARD_TEXT), "pending": self._queue.pending,
            "pending_bytes": self._queue.pending_bytes, "uploading": uploading,
        }  # fmt: skip
        now["next_durable_why"] = visible(now["next_durable_why"], CARD_TEXT)
        troubles = [*self._checkpoints.errors, *list(self._owners.notices)[-MAX_ERRORS:]]
        return {"now": now, "errors": [visible(text, CARD_TEXT) for text in troubles]}

    def _until_durable(self) -> tuple[float | None, str]:
        rate = self._pace.order.bytes_per_s or self._throughput.bytes_per_s() or self._throughput.known
        return until_durable(self._queue, rate, self._uploader.trouble)

    def exposure_warning(self) -> str:
        """What is to be said of ``max_exposure``; nothing, mostly."""
        if not self._config.max_exposure_s or not self._owners:
            return ""
        return self._exposure.warning(self._exposure.loss(self._queue.waiting()), next_words(*self._until_durable()))

    def _is_exposure_near(self) -> bool:
        """Whether more work may be lost than ``max_exposure`` allows, unless what waits is sent as fast as can be."""
        if not self._config.max_exposure_s or not self._queue.pending:
            return False
        lost_s, known = self._exposure.loss(self._queue.waiting()).machine_s, self._throughput.known
        needed_s = self._queue.pending_bytes / known if known else 0.0
        return lost_s is not None and lost_s + needed_s >= PACE_EXPOSURE_SHARE * self._config.max_exposure_s

    def _why_waiting(self) -> str:
        """What holds up the oldest checkpoint that is held up; empty: nothing."""
        if self._uploader.trouble:
            return f"no uploader can be had: {self._uploader.trouble}"
        held_up = next((f"{job.id}: {job.why}" for job in self._queue.in_line() if job.why), "")
        return held_up or (self._annotating.why if self._annotating.left else "")


def _keys(message: Message) -> list[str]:
    keys = message.get("keys")
    return [str(key) for key in keys] if isinstance(keys, list) else []


def _reply(connection: Connection, message: Message, answer: Message) -> None:
    connection.send({"seq": message.get("seq"), **answer})


def _refuse(connection: Connection, message: Message, why: str) -> None:
    _reply(connection, message, {"error": why})


def _seconds(value: Any, default: float) -> float:
    """A time limit as somebody sent it; at most a year."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return default
    return float(min(max(value, 0), _YEAR_S))


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _YEAR_S


def _is_admit(message: Message, fds: list[int]) -> bool:
    guard = message.get("guard")
    return isinstance(guard, list) and len(guard) == len(fds) and all(isinstance(path, str) for path in guard)
