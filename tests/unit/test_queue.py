"""What is started when, without clocks, files or sockets."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from async_ckpt.agent.queue import MAX_BATCH, Action, Queue
from async_ckpt.spool.journal import COMMITTED, FAILED, SUPERSEDED


def admitted(count: int, *, max_uploads: int = 2) -> Queue:
    queue = Queue(max_uploads)
    for version in range(count):
        queue.add(str(version), (0, version), 10)
    return queue


def test_the_oldest_are_uploaded_first_up_to_the_limit() -> None:
    queue = admitted(5)
    assert queue.next_actions() == [Action("upload", ("0",)), Action("upload", ("1",))]
    assert queue.next_actions() == []


def test_an_earlier_save_that_is_admitted_late_goes_first() -> None:
    queue = Queue(1)
    queue.add("late", (0, 7), 1)
    queue.add("early", (0, 3), 1)
    assert queue.next_actions() == [Action("upload", ("early",))]


def test_an_upload_that_overtakes_is_not_committed_before_its_turn() -> None:
    queue = admitted(2)
    queue.next_actions()
    queue.uploaded("1")
    assert queue.next_actions() == []
    queue.uploaded("0")
    assert queue.next_actions() == [Action("commit", ("0", "1"))]


def test_a_failed_checkpoint_does_not_hold_up_the_next() -> None:
    queue = admitted(2)
    queue.next_actions()
    queue.uploaded("1")
    queue.end("0", FAILED, "refused")
    assert queue.next_actions() == [Action("commit", ("1",))]
    assert [job.why for job in queue.failed()] == ["refused"]


def test_attempts_are_older_than_their_successors_whatever_their_versions() -> None:
    queue = Queue(1)
    queue.add("1.x.0", (1, 0), 1)
    queue.add("0.x.9", (0, 9), 1)
    assert queue.next_actions() == [Action("upload", ("0.x.9",))]


def test_after_the_uploader_died_everything_under_way_is_handed_out_again() -> None:
    queue = admitted(2)
    queue.next_actions()
    queue.uploaded("0")
    assert queue.next_actions() == [Action("commit", ("0",))]
    queue.restart()
    assert queue.next_actions() == [Action("commit", ("0",)), Action("upload", ("1",))]


def uploaded(count: int) -> Queue:
    queue = Queue(2)
    for version in range(count):
        queue.add(str(version), (0, version), 10, uploaded=True)
    return queue


def test_what_is_uploaded_at_the_head_is_committed_as_one_batch() -> None:
    queue = uploaded(3)
    queue.add("3", (0, 3), 10)
    queue.add("4", (0, 4), 10, uploaded=True)
    assert queue.next_actions() == [Action("commit", ("0", "1", "2")), Action("upload", ("3",))]
    for version in "012":
        queue.end(version, COMMITTED)
        queue.uploaded("3") if version == "0" else None
        assert queue.next_actions() == ([Action("commit", ("3", "4"))] if version == "2" else [])


def test_a_batch_is_bounded() -> None:
    queue = uploaded(MAX_BATCH + 2)
    (action,) = queue.next_actions()
    assert action.ids == tuple(str(version) for version in range(MAX_BATCH))


def test_a_commit_that_fails_for_good_ends_its_batch_and_the_rest_is_handed_out_again() -> None:
    queue = uploaded(4)
    queue.next_actions()
    queue.end("0", COMMITTED)
    queue.end("1", FAILED, "refused")
    assert queue.next_actions() == [Action("commit", ("2", "3"))]


def test_a_commit_that_pauses_holds_up_those_after_it() -> None:
    queue = uploaded(3)
    queue.next_actions()
    queue.end("0", COMMITTED)
    queue.pause("1")
    assert queue.next_actions() == []
    queue.resume("1")
    assert queue.next_actions() == [Action("commit", ("1", "2"))]


def test_of_a_batch_that_an_uploader_died_in_only_the_oldest_is_to_blame() -> None:
    queue = uploaded(3)
    queue.add("3", (0, 3), 10)
    queue.next_actions()
    assert queue.restart() == ["3", "0"]


def test_an_older_one_that_is_admitted_during_a_commit_waits_for_its_end() -> None:
    """Two at once could leave the older one as the latest."""
    queue = Queue(1)
    queue.add("newer", (0, 1), 1, uploaded=True)
    assert queue.next_actions() == [Action("commit", ("newer",))]
    queue.add("older", (0, 0), 1, uploaded=True)
    assert queue.next_actions() == []
    queue.end("newer", COMMITTED)
    assert queue.next_actions() == [Action("commit", ("older",))]


def test_a_failed_checkpoint_can_be_taken_up_again() -> None:
    queue = admitted(1)
    queue.next_actions()
    queue.end("0", FAILED, "refused")
    assert queue.pending == 0
    queue.retry("0")
    assert queue.next_actions() == [Action("upload", ("0",))]
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
        self.committing: list[str] = []
        self.committed: list[str] = []

    @rule(target=jobs, order=st.tuples(st.integers(0, 2), st.integers(0, 50)), uploaded=st.booleans())
    def admit(self, order: tuple[int, int], uploaded: bool) -> str:
        identity = f"{order[0]}.x.{order[1]}"
        if identity not in self.queue.jobs:
            self.queue.add(identity, order, 1, uploaded=uploaded)
        return identity

    def take(self) -> None:
        for action in self.queue.next_actions():
            for identity in action.ids:
                assert identity not in self.handed_out, "handed out twice"
                self.handed_out[identity] = action.kind
            if action.kind == "commit":
                assert self.committing == [], "two batches at once"
                open_jobs = [job for job in self.queue.jobs.values() if job.state not in (COMMITTED, FAILED)]
                oldest = sorted(job.order for job in open_jobs)[: len(action.ids)]
                assert [self.queue.jobs[identity].order for identity in action.ids] == oldest
                self.committing = list(action.ids)

    @rule()
    def start(self) -> None:
        self.take()

    @rule(identity=jobs, fails=st.booleans())
    def finish_upload(self, identity: str, fails: bool) -> None:
        if self.handed_out.get(identity) == "upload":
            del self.handed_out[identity]
            self.queue.end(identity, FAILED, "no") if fails else self.queue.uploaded(identity)

    @rule(how=st.sampled_from([COMMITTED, FAILED, "pause"]))
    def finish_commit(self, how: str) -> None:
        """An uploader answers for a batch in its order; what fails ends it."""
        if not self.committing:
            return
        identity = self.committing.pop(0)
        del self.handed_out[identity]
        if how == COMMITTED:
            self.queue.end(identity, COMMITTED)
            self.committed.append(identity)
            return
        for other in self.committing:
            del self.handed_out[other]
        self.committing = []
        self.queue.end(identity, FAILED, "no") if how == FAILED else self.queue.pause(identity)

    @rule(identity=jobs)
    def resume(self, identity: str) -> None:
        self.queue.resume(identity)

    @rule()
    def uploader_dies(self) -> None:
        self.handed_out.clear()
        self.committing = []
        self.queue.restart()

    @rule(identity=jobs)
    def retry(self, identity: str) -> None:
        self.queue.retry(identity)

    @invariant()
    def uploads_are_bounded(self) -> None:
        assert list(self.handed_out.values()).count("upload") <= 2

    @invariant()
    def a_batch_is_what_was_oldest_when_it_began(self) -> None:
        self.take()

    @invariant()
    def counts_are_right(self) -> None:
        jobs = self.queue.jobs.values()
        assert self.queue.pending == sum(job.state not in (COMMITTED, FAILED) for job in jobs)
        assert self.queue.committed == sum(job.state == COMMITTED for job in jobs) == len(self.committed)

    def teardown(self) -> None:
        for _ in range(1000):
            if not self.queue.pending:
                return
            for identity in self.queue.jobs:
                self.queue.resume(identity)
            self.take()
            for identity in list(self.handed_out):
                self.finish_upload(identity, False)
            self.finish_commit(COMMITTED)
        raise AssertionError("it never ends")


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_is_put_first_is_uploaded_alone_and_committed_before_older_ones() -> None:
    queue = admitted(5)
    queue.next_actions()
    for identity in "01":
        queue.give_way(identity)
    queue.hurry("43210", ["3"])
    assert queue.next_actions() == [Action("upload", ("3",))]
    queue.uploaded("3")
    assert queue.next_actions() == [Action("commit", ("3",))]
    queue.end("3", COMMITTED)
    assert queue.next_actions() == []
    queue.relax()
    assert queue.next_actions() == [Action("upload", ("0",)), Action("upload", ("1",))]


def test_what_is_uploaded_at_the_head_need_not_wait_for_what_is_put_first() -> None:
    queue = uploaded(1)
    queue.add("1", (0, 1), 10)
    queue.add("2", (0, 2), 10)
    queue.hurry("210", ["2"])
    assert queue.next_actions() == [Action("commit", ("0",)), Action("upload", ("2",))]


def test_in_a_hurry_the_newest_is_committed_alone_and_the_others_after_it_newest_first() -> None:
    queue = uploaded(3)
    queue.hurry("210", [])
    assert queue.next_actions() == [Action("commit", ("2",))]
    queue.end("2", COMMITTED)
    assert queue.next_actions() == [Action("commit", ("1", "0"))]


def test_in_a_hurry_what_cannot_be_committed_now_gives_way() -> None:
    queue = uploaded(3)
    queue.hurry("210", [])
    queue.next_actions()
    queue.give_way("2")
    queue.hurry("102", [])
    assert queue.next_actions() == [Action("commit", ("1",))]
    queue.pause("1")
    assert queue.next_actions() == [Action("commit", ("0",))]


def test_what_has_given_way_goes_on_when_there_is_time_again() -> None:
    queue = admitted(3, max_uploads=1)
    queue.next_actions()
    queue.give_way("0")
    queue.hurry("210", ["2"])
    assert queue.next_actions() == [Action("upload", ("2",))]
    queue.give_way("2")
    queue.relax()
    assert queue.next_actions() == [Action("upload", ("0",))]


def test_nobody_waits_for_one_that_is_passed_by_and_it_comes_in_its_place_when_it_can() -> None:
    queue = uploaded(3)
    queue.pause("0")
    assert queue.next_actions() == []
    queue.pass_by("0")
    assert queue.next_actions() == [Action("commit", ("1", "2"))]
    queue.end("1", COMMITTED)
    queue.end("2", COMMITTED)
    queue.add("3", (0, 3), 10, uploaded=True)
    queue.resume("0")
    assert queue.next_actions() == [Action("commit", ("0", "3"))]


def test_only_what_waits_and_is_not_the_newest_of_its_name_is_dispensable() -> None:
    queue = Queue(1)
    assert queue.dispensable() is None
    for version, name in enumerate(["a", "b", "a", "b.c", "a"]):
        queue.add(f"0.{name}.{version}", (0, version), 10)
    queue.next_actions()
    assert queue.dispensable() == "0.a.2"
    queue.end("0.a.2", SUPERSEDED)
    assert queue.dispensable() is None
    assert queue.failed() == []
    assert queue.open_bytes == 40


def test_of_one_that_failed_after_its_upload_only_the_commit_is_repeated() -> None:
    queue = admitted(1)
    queue.next_actions()
    queue.uploaded("0")
    assert queue.next_actions() == [Action("commit", ("0",))]
    queue.end("0", FAILED, "refused")
    queue.retry("0")
    assert queue.next_actions() == [Action("commit", ("0",))]
