"""The agent's orders to its uploader, and what it does about the answers.

``upload/process.py`` lists the messages between the two.
"""

from __future__ import annotations

from .. import layout
from ..config import HELD_UP_S
from ..ipc.protocol import Message
from ..spool import journal
from ..spool.journal import COMMITTED, UPLOADED, UPLOADING
from ..spool.records import Admitted, is_torn, torn_file
from ..spool.unchanged import fingerprints
from ..system.crash import crash_point
from .checkpoints import Checkpoints
from .housekeeping import removed
from .job import Job
from .parts import Parts

#: Newer checkpoints are committed without one that was tried in vain this often, or that has shown nothing new for this
#: many times as long as an answer of the store may take.
_MOST_BLOCKED, _MOST_SILENT = 3, 2


class Dispatcher:
    """See the module's docstring."""

    def __init__(self, parts: Parts, checkpoints: Checkpoints) -> None:
        self._config, self._clock, self._uploader = parts.config, parts.clock, parts.uploader
        self._queue, self._journal, self._leases, self._owners = parts.queue, parts.journal, parts.leases, parts.owners
        self._deaths, self._starts, self._last_call = parts.deaths, parts.starts, parts.last_call
        self._throughput, self._exposure, self._checkpoints = parts.throughput, parts.exposure, checkpoints
        self._card, self._retaining, self._annotating = parts.card, parts.retaining, parts.annotating
        self.bytes_copied = 0
        #: When the task may be told of the next checkpoint that is held up (monotonic seconds).
        self._tell_again = 0.0
        #: Of which attempt the uploader was told that its task has died, and has not answered.
        self._death_ordered: int | None = None
        self._on = {
            None: self._on_line, "copied": self._on_copied, "waiting": self._on_waiting,
            "uploaded": self._on_uploaded, "committed": self._on_committed, "failed": self._on_failed,
        }  # fmt: skip

    # -- orders --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Order what can be done now."""
        if self._queue.pending and self._uploader.ensure():
            for action in self._queue.next_actions():
                job = self._queue.jobs[action.ids[0]]
                if action.kind == "commit":
                    self._uploader.tell({"op": "commit", "ids": action.ids})
                elif action.kind == "gather":
                    self._gather(job)
                elif job.item is not None:
                    self._upload(job, job.item)

    def _upload(self, job: Job, item: Admitted) -> None:
        known = self._journal.of(job.id)
        job.fingerprints = fingerprints(item)
        copies = [
            {"op": "unchanged", "id": job.id, "path": path, "key": file.key, **journal.stored_fields(file.stored)}
            for path, file in self._journal.stored.among(job.fingerprints).items() if path not in known.files
        ]  # fmt: skip
        job.sent = sum(item.entries[path].size for path in known.files if path in item.entries)
        self._deaths.taken(job.id)
        self._card.began(job, item)
        self._uploader.tell(*journal.steps(job.id, known), *copies, {"op": "upload", "id": job.id})

    def _gather(self, job: Job) -> None:
        """Have the uploader wait for the other ranks; only a moment where our task is gone, or this is of an earlier
        attempt: they may be gone for ever.
        """
        late = self._owners.orphaned or job.outdated or journal.order(job.id)[0] < self._owners.attempt
        limit = self._config.collective_grace_s if late else self._config.collective_timeout_s
        # However often it is begun anew: an uploader that dies, or a store that fails now and then, adds nothing.
        now = self._clock.monotonic()
        left = max(limit - (now - job.gathered_since.setdefault(late, now)), 0.0)
        self._uploader.tell({"op": "gather", "id": job.id, "timeout_s": left, "decides": not late})

    def gather_in(self, seconds: float) -> None:
        """Wait for the other ranks no longer than this."""
        for job in self._queue.gathering():
            self._uploader.tell({"op": "gather", "id": job.id, "timeout_s": seconds, "decides": False})

    def tell_death(self) -> None:
        """Have the other nodes of the gang told that this node's task has died: they need not wait for it."""
        if self._death_ordered is None and self._owners.untold_death is not None and self._uploader.ensure():
            self._death_ordered = self._owners.untold_death
            self._uploader.tell({"op": "gone", "id": "", "attempt": self._death_ordered})

    # -- what the uploader says ----------------------------------------------------------------------------------------

    def on_trouble(self, why: str) -> None:
        """None can be started, or the last one was of no use."""
        self._owners.say(f"The uploader {why}. Another one is started; what was saved stays in the spool until then")

    def on_death(self, spoke: bool) -> None:
        """The uploader is gone: all that it had in hand is to be done again."""
        self._checkpoints.look_after_spool()  # The next one needs it whole.
        under_way = self._queue.restart()
        self._card.uploader_died()
        self._retaining.uploader_died()
        self._annotating.uploader_died()
        self._death_ordered = None
        self._starts.uploader_died()
        if spoke:
            for identity, why in list(self._deaths.died(under_way, self._clock.monotonic())):
                self._checkpoints.fail(self._queue.jobs[identity], why)
        self._last_call.stumbled(under_way, "the uploader died")

    def on_message(self, message: Message) -> None:
        """Hear what the uploader says, of one checkpoint or of none."""
        op = message.get("op")
        if op == "gone":
            self._death_ordered = self._owners.untold_death = None
        elif op == "claimed":
            self._starts.on_message(message)
        elif op == "card":
            self._card.on_written(message)
        elif op == "annotated":
            if why := self._annotating.on_message(message, self._clock.monotonic()):
                self._owners.say(why)
            self._retaining.look_again()
        elif op in ("candidates", "removed"):
            self._retaining.on_message(message, self._clock.monotonic())
            self._note_removed(message["keys"] if op == "removed" else [])
        elif op == "notice":
            self._owners.say(message["why"])  # One uploader after the other may say so.
        job = self._queue.jobs.get(message["id"])
        if job is None or job.item is None:
            return
        if op == "progress":
            job.sent += message["bytes"]  # Sent is not stored: the store may refuse it.
            job.all_sent += message["bytes"]
            self._throughput.add(message["bytes"])
        elif op in self._on:
            self._uploader.is_well()
            self._on[op](job, job.item, message)

    def _note_removed(self, keys: list[str]) -> None:
        """Of this spool's checkpoints: they are not in the store any more."""
        for key in keys:
            parts = layout.parse_key(key)
            job = self._queue.jobs.get(f"{parts.attempt}.{parts.name}.{parts.version}")
            if job is not None and job.state == COMMITTED:
                self._checkpoints.removed(job)

    def _on_line(self, job: Job, item: Admitted, line: Message) -> None:
        """A file or a part is in the store: what the uploader says of it is what the journal keeps."""
        if not journal.is_step(line):
            return
        path = line.get("file")
        if path is None:
            self._journal.note(line)
            return
        entry = item.entries.get(path)
        if entry is not None and not self._leases.stands(job.id, path) and is_torn(item, entry):
            return  # What was sent may be torn as well: the checkpoint will fail.
        fingerprint = job.fingerprints.get(path)
        if fingerprint is not None and fingerprint.shows_writes_after(item.captured.wall_ns):
            line["inode"] = fingerprint
        if self._journal.note(line):
            self._leases.let_go(job.id, [path])

    def _on_copied(self, job: Job, item: Admitted, message: Message) -> None:
        job.sent += message["bytes"]
        job.all_copied += message["bytes"]
        self.bytes_copied += message["bytes"]

    def _on_waiting(self, job: Job, item: Admitted, message: Message) -> None:
        """It waits for other ranks: how long is bounded. The store has answered."""
        job.why = message["why"]
        job.outage.reset()

    def _on_uploaded(self, job: Job, item: Admitted, message: Message) -> None:
        job.why = ""
        job.store_answered()
        if job.state != UPLOADING:
            return  # It was told to pause in this moment, and will be ordered again.
        # The last word on torn files: a link that lost its lease by force has another mtime by now.
        standing = {path for path in item.entries if self._leases.stands(job.id, path)}
        if torn := torn_file(item, self._journal.of(job.id).files.keys() | standing):
            why = f"{torn} was written to while it was uploaded; its lease was broken by force"
            self._checkpoints.fail(job, why, lost=True)
            return
        crash_point("agent:before-uploaded")
        self._queue.uploaded(job.id)
        self._card.uploaded(job, item)
        job.fingerprints = {}
        # Leases go only once the journal knows that the files are not needed any more.
        if self._journal.note({"id": job.id, "state": UPLOADED}):
            self._leases.let_go(job.id)
        self._last_call.choose_again()  # It can be committed now.

    def _on_committed(self, job: Job, item: Admitted, message: Message) -> None:
        job.store_answered()
        crash_point("agent:before-committed")
        self._checkpoints.commit(job, {**layout.whole(item.reference), **message.get("reference", {})})

    def _on_failed(self, job: Job, item: Admitted, message: Message) -> None:
        why = message["why"]
        if job.state not in (UPLOADING, UPLOADED):
            return  # It was told to pause in this moment, and will be ordered again.
        if message["transient"]:
            self._try_later(job, why)
            return
        if job.outdated:
            # Nobody misses it: the ranks that were started again have begun with an earlier one.
            self._checkpoints.supersede(job, f"given up, as its ranks were started again: {why}")
            return
        self._checkpoints.fail_torn()  # Such files were removed by ourselves.
        if job.state == UPLOADING and (missing := removed(item, self._journal.of(job.id).files)):
            self._checkpoints.fail(job, missing, lost=True)
            return
        self._checkpoints.fail(job, why, lost=bool(message.get("decided")), refused=message["refused"])

    # -- a store that does not take it ---------------------------------------------------------------------------------

    def _try_later(self, job: Job, why: str) -> None:
        """The store is out of reach: say so once, pause and try again, until the outage has lasted too long."""
        now = self._clock.monotonic()
        if not job.is_said_held_up and now >= self._tell_again:
            job.is_said_held_up, self._tell_again = True, now + HELD_UP_S
            lost = self._exposure.loss(self._queue.waiting()).words()
            told = f"Uploads are held up, and tried again: {job.id}: {why} ({lost})"
            self._owners.tell({"push": "notice", "why": told})
        stored = job.stored_bytes(self._journal.of(job.id))
        lasted_s = job.store_failed(now, stored)
        if lasted_s >= self._config.outage_s:
            tried = f"It was tried for {lasted_s:.0f} s, in which nothing more of it was stored"
            self._checkpoints.fail(job, f"{tried}: {why}")
            return
        self._checkpoints.remember(f"{job.id}: {why}")
        self._deaths.put_down(job.id)
        job.why = f"held up, and tried again: {why}"
        self._queue.pause(job.id, now + job.outage.left_s(now))
        job.sent = stored
        if job.outage.count >= _MOST_BLOCKED:  # It may have itself to blame.
            self._queue.pass_by(job.id)
        self._last_call.stumbled([job.id], f"{job.id} failed ({why})")

    def end_what_hangs(self, now: float) -> None:
        """A disk that is gone never answers: what shows nothing new for longer than any outage may last has failed, so
        that others have its place. Nobody waits so long for it: newer ones are committed without it long before.
        """
        batch = self._queue.committing[:1]
        limit = max(self._config.outage_s, 2 * self._config.store_deadline_s, self._config.complete_timeout_s)
        for job in [*self._queue.uploading, *batch] if self._uploader.is_awake else ():
            silent_s = job.progress.look(job.tries, job.sent, now)
            if silent_s > limit:
                self._uploader.tell({"op": "pause", "id": job.id})
                self._checkpoints.fail(job, f"The store has taken nothing of it for {limit:.0f} s, and not said why")
            elif silent_s > _MOST_SILENT * self._config.answer_timeout_s and not self._last_call.is_near:
                self._queue.pass_by(job.id)
                if job in batch:
                    self._uploader.tell({"op": "pause", "id": job.id})
                    self._try_later(job, f"The store has not answered its commit for {silent_s:.0f} s")
