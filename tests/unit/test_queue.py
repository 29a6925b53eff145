"""What is started when, without clocks, files or sockets."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from async_ckpt.agent.queue import Action, Queue
from async_ckpt.spool.journal import COMMITTED, FAILED


def admitted(count: int, *, max_uploads: int = 2) -> Queue:
    queue = Queue(max_uploads)
    for version in range(count):
        queue.admit(str(version), (0, version), 10)
    return queue


def test_the_oldest_are_uploaded_first_up_to_the_limit() -> None:
    queue = admitted(5)
    assert queue.next_actions() == [Action("upload", "0"), Action("upload", "1")]
    assert queue.next_actions() == []


def test_an_earlier_save_that_is_admitted_late_goes_first() -> None:
    queue = Queue(1)
    queue.admit("late", (0, 7), 1)
    queue.admit("early", (0, 3), 1)
    assert queue.next_actions() == [Action("upload", "early")]


def test_an_upload_that_overtakes_is_not_committed_before_its_turn() -> None:
    queue = admitted(2)
    queue.next_actions()
    queue.uploaded("1")
    assert queue.next_actions() == []
    queue.uploaded("0")
    assert queue.next_actions() == [Action("commit", "0")]
    queue.end("0", COMMITTED)
    assert queue.next_actions() == [Action("commit", "1")]


def test_a_failed_checkpoint_does_not_hold_up_the_next() -> None:
    queue = admitted(2)
    queue.next_actions()
    queue.uploaded("1")
    queue.end("0", FAILED, "refused")
    assert queue.next_actions() == [Action("commit", "1")]
    assert [job.why for job in queue.failed()] == ["refused"]


def test_attempts_are_older_than_their_successors_whatever_their_versions() -> None:
    queue = Queue(1)
    queue.admit("1.x.0", (1, 0), 1)
    queue.admit("0.x.9", (0, 9), 1)
    assert queue.next_actions() == [Action("upload", "0.x.9")]


def test_after_the_uploader_died_everything_under_way_is_handed_out_again() -> None:
    queue = admitted(2)
    queue.next_actions()
    queue.uploaded("0")
    assert queue.next_actions() == [Action("commit", "0")]
    queue.restart()
    assert queue.next_actions() == [Action("commit", "0"), Action("upload", "1")]


def test_an_older_one_that_is_admitted_during_a_commit_waits_for_its_end() -> None:
    """Two at once could leave the older one as the latest."""
    queue = Queue(1)
    queue.admit("newer", (0, 1), 1, uploaded=True)
    assert queue.next_actions() == [Action("commit", "newer")]
    queue.admit("older", (0, 0), 1, uploaded=True)
    assert queue.next_actions() == []
    queue.end("newer", COMMITTED)
    assert queue.next_actions() == [Action("commit", "older")]


def test_a_failed_checkpoint_can_be_taken_up_again() -> None:
    queue = admitted(1)
    queue.next_actions()
    queue.end("0", FAILED, "refused")
    assert queue.pending == 0
    queue.retry("0")
    assert queue.next_actions() == [Action("upload", "0")]
    assert queue.jobs["0"].why == ""


def test_pending_bytes_count_down_with_what_was_sent_and_never_below_zero() -> None:
    queue = admitted(3)
    assert queue.pending_bytes == 30
    queue.jobs["0"].sent = 4
    queue.jobs["1"].sent = 99
    assert queue.pending_bytes == 16
    queue.uploaded("2")
    assert queue.pending_bytes == 6


class Model(RuleBasedStateMachine):
    """Savers, an uploader that dies, and a store that refuses: commits still come in order, and everything ends."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(2)
        self.handed_out: dict[str, str] = {}
        self.committed: list[str] = []

    @rule(target=jobs, order=st.tuples(st.integers(0, 2), st.integers(0, 50)), uploaded=st.booleans())
    def admit(self, order: tuple[int, int], uploaded: bool) -> str:
        identity = f"{order[0]}.x.{order[1]}"
        if identity not in self.queue.jobs:
            self.queue.admit(identity, order, 1, uploaded=uploaded)
        return identity

    @rule()
    def start(self) -> None:
        for action in self.queue.next_actions():
            assert action.id not in self.handed_out, "handed out twice"
            self.handed_out[action.id] = action.kind

    @rule(identity=jobs, fails=st.booleans())
    def finish(self, identity: str, fails: bool) -> None:
        kind = self.handed_out.pop(identity, None)
        if kind is None:
            return
        if fails:
            self.queue.end(identity, FAILED, "no")
        elif kind == "upload":
            self.queue.uploaded(identity)
        else:
            self.queue.end(identity, COMMITTED)
            self.committed.append(identity)

    @rule()
    def uploader_dies(self) -> None:
        self.handed_out.clear()
        self.queue.restart()

    @rule(identity=jobs)
    def retry(self, identity: str) -> None:
        self.queue.retry(identity)

    @invariant()
    def only_one_commit_at_a_time(self) -> None:
        assert list(self.handed_out.values()).count("commit") <= 1

    @invariant()
    def uploads_are_bounded(self) -> None:
        assert list(self.handed_out.values()).count("upload") <= 2

    @invariant()
    def a_commit_was_the_oldest_when_it_began(self) -> None:
        for action in self.queue.next_actions():
            self.handed_out[action.id] = action.kind
            if action.kind == "commit":
                assert list(self.handed_out.values()).count("commit") == 1
                open_jobs = [job for job in self.queue.jobs.values() if job.state not in (COMMITTED, FAILED)]
                assert self.queue.jobs[action.id].order == min(job.order for job in open_jobs)

    @invariant()
    def counts_are_right(self) -> None:
        jobs = self.queue.jobs.values()
        assert self.queue.pending == sum(job.state not in (COMMITTED, FAILED) for job in jobs)
        assert self.queue.committed == sum(job.state == COMMITTED for job in jobs) == len(self.committed)

    def teardown(self) -> None:
        for _ in range(1000):
            if not self.queue.pending:
                return
            for action in self.queue.next_actions():
                self.handed_out[action.id] = action.kind
            for identity, kind in list(self.handed_out.items()):
                del self.handed_out[identity]
                self.queue.uploaded(identity) if kind == "upload" else self.queue.end(identity, COMMITTED)
        raise AssertionError("it never ends")


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
