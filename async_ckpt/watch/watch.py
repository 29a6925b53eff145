"""The thread of a watch: it looks, decides, saves, gives back the disk, and waits."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from ..config import (
    WATCH_CLOCKS_S,
    WATCH_END_S,
    WATCH_END_SAVING_S,
    WATCH_LAST_WRITES_S,
    WATCH_SHORTEST_PAUSE_S,
    Config,
)
from ..errors import CheckpointError, WatchError, os_reason
from ..system.files import given_path
from ..task.checkpointer import Checkpointer
from . import retention
from .already_saved import AlreadySaved
from .early_capture import EarlyCaptures
from .entry import Entry
from .entry_saver import EntrySaver
from .events import Events
from .explanation import Explanation
from .gone import Gone
from .options import WatchOptions
from .recogniser import UNSURE_FACTOR, Recogniser
from .scan import CpuBudget, Scanner
from .tree import Tree

log = logging.getLogger(__package__)

#: So many reasons stand in an error.
_MAX_SHOWN = 5


class Watch:
    """Saves what is finished in a directory, until it is stopped; a context manager. Its lines go to the log.

    Parameters
    ----------
    checkpointer : Checkpointer
        Saves.
    path : str
        The directory; it may come later.
    options : WatchOptions
        Which entries count, and how they are saved.
    config : Config
        Especially ``watch_settle_s``, ``rescan_s`` and ``flush_timeout_s``.
    began_ns : int
        When this attempt began (wall clock, nanoseconds): the last entry that was written before may be half, as its
        writer was killed. 0: there was no attempt before.
    clock : callable
        Monotonic seconds.
    wall_clock_ns : callable
        The time of day, as file systems know it, in nanoseconds.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        path: str | os.PathLike[str],
        options: WatchOptions,
        config: Config,
        *,
        began_ns: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = given_path(path)
        self._options, self._config, self._began_ns = options, config, began_ns
        self._settle_s = config.watch_settle_s if options.settle is None else options.settle
        self._recogniser = Recogniser(self._settle_s, needs_marker=options.done is not None, clock=clock)
        self._already_saved = AlreadySaved(checkpointer, self.path, options.name, began_ns)
        self._saver = EntrySaver(checkpointer, self.path, options, config, self._already_saved, clock=clock)
        self._captures = EarlyCaptures(self.path, checkpointer.new_early_directory, config)
        self._explanation = Explanation(self.path, options, clock)
        self._wake, self._ending = threading.Event(), threading.Event()
        self._scanner = Scanner(self.path, options, Events(self._wake.set))
        self._budget = CpuBudget()
        #: What was last written to before this moment is not from a trainer that runs now (wall clock, nanoseconds).
        self._since_ns = wall_clock_ns() - int(WATCH_CLOCKS_S * 1e9)
        # Here, and not in the thread: what happens after the constructor is seen.
        self._there_at_first = self._scanner.begin()
        self._has_looked = False
        #: Whether the directory was there at the last look; None: there was no look.
        self._was_there: bool | None = None
        self._knows_what_was_saved = False
        #: What went wrong in the last round.
        self._trouble = ""
        #: Whether the trainer has ended well, and until when the watch must have ended.
        self._end: tuple[bool, float] | None = None
        self._has_ended = False
        #: What is not saved; until the thread has ended, this.
        self._left = ["the watch ended before its time"]
        self._thread = threading.Thread(target=self._run, name="async_ckpt-watch", daemon=True)
        self._thread.start()

    @property
    def saved(self) -> int:
        """How many checkpoints this watch has saved."""
        return self._saver.count

    # -- the end ---------------------------------------------------------------------------------------------------

    def stop(self, timeout: float | None = None, *, complete: bool = True) -> None:
        """Look once more, save what is finished, and end. Does nothing the second time.

        Parameters
        ----------
        timeout : float, optional
            Limit in seconds; None: that of a flush.
        complete : bool
            The trainer has ended well: what it wrote last is waited for until it is quiet, and saved. False: it may
            have died; only what is finished now is saved, and a line in the log says what is left out.

        Raises
        ------
        WatchError
            ``complete``, and something is not saved, or the directory is not there; says what and why.
        """
        if self._has_ended:
            return
        limit = self._config.flush_timeout_s if timeout is None else timeout
        self._end = (complete, time.monotonic() + limit)
        self._ending.set()
        self._wake.set()
        self._thread.join(limit + WATCH_END_SAVING_S)
        if not self._saver.is_saving:
            self._thread.join(WATCH_END_S - WATCH_END_SAVING_S)
        self._has_ended = True
        left = ["a save is still under way"] if self._thread.is_alive() else self._left
        if left and complete:
            more = f"; and {len(left) - _MAX_SHOWN} more" if len(left) > _MAX_SHOWN else ""
            raise WatchError(
                f"Not all that was watched is saved: {'; '.join(left[:_MAX_SHOWN])}{more}",
                where=self.path, hint="It is still on the disk",
            )  # fmt: skip
        for line in left:
            log.warning(f"left out: {line}")

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(complete=kind is None)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (end := self._end) is None:
            self._wake.clear()
            self._round(last=False)
            pause = min(self._config.rescan_s, self._settle_s / 4, self._recogniser.next_capture_s())
            self._wake.wait(max(pause, WATCH_SHORTEST_PAUSE_S))
            # Thousands of events, or a large directory, are no reason to take the trainer's core.
            self._ending.wait(self._budget.rest_s())
        complete, deadline = end
        give_up = min(time.monotonic() + max(WATCH_LAST_WRITES_S, UNSURE_FACTOR * self._settle_s), deadline)
        self._saver.try_all_again()
        self._round(last=complete)
        while complete and self._is_worth_waiting(give_up, deadline):
            time.sleep(min(self._budget.rest_s(), self._config.rescan_s))
            self._round(last=True)
        pending, before = [], self._saver.count
        if not self._was_there:  # It has gone, and all that was in it.
            pending = self._recogniser.pending()
            self._recogniser.observe({})
        self._save_gone(last=True)
        if self._saver.count - before < len(pending):
            self._trouble = f"{self.path} has vanished"
        self._left = self._leftovers()
        if self._has_looked and self._saver.count:
            self._explanation.say_what_was_passed_over()
        elif self._has_looked:
            self._explanation.say_why_nothing_was_saved(self._recogniser.entries.values())
        self._captures.drop_all_but(())
        self._scanner.end()

    def _round(self, *, last: bool) -> None:
        try:
            began = time.thread_time()
            is_there = self._look(last)
            self._budget.spend(time.thread_time() - began)
            if is_there:
                self._recognise_saved(last)
                self._capture_early()
                self._saver.begin_round()
                self._save_gone()
                self._save_finished(last)
                self._retain()
            self._trouble = ""
        except Exception as error:  # Whatever it is, the next round may do better; it is logged, and told at the end.
            reason = f"{error.filename or self.path}: {os_reason(error)}" if isinstance(error, OSError) else repr(error)
            if isinstance(error, CheckpointError):
                reason = str(error)
            if self._trouble != reason:
                log.warning(f"not all could be looked at: {reason}")
            self._trouble = reason

    def _look(self, last: bool) -> bool:
        """Take in what is there. False: the directory is not there."""
        looks = self._scanner.scan()
        if looks is None:
            if self._was_there is None:
                log.info(f"{self.path} does not exist yet: it is waited for")
            elif self._was_there:
                log.warning(f"{self.path} has vanished: it is waited for until it comes back")
            self._was_there = False
            return False
        if self._was_there is False:
            log.info(f"{self.path} is there{' again' if self._has_looked else ''}")
        self._was_there = True
        first, self._has_looked = not self._has_looked, True
        old = {path for path, look in looks.items() if self._is_old(path, look.tree, first)}
        vanished = self._recogniser.observe(looks, old=old)
        waiting = {gone.path for gone in self._recogniser.gone}
        for entry in vanished:
            if entry.is_unsaved and entry.path not in waiting:
                log.warning(f"{entry.path} has gone before it was {'saved as it was' if entry.saved else 'saved'}")
            self._forget(entry)
        if first:
            self._begin()
        self._explanation.note(looks)
        early, final = self._recogniser.to_check_for_writers(last=last)
        # What is captured early is checked again before it is saved, and then for mappings as well.
        is_open = self._scanner.open(early, mapped=False) | self._scanner.open(final, mapped=True)
        self._recogniser.note_open(is_open)
        return True

    def _is_old(self, path: str, tree: Tree, first: bool) -> bool:
        """Whether it was there before the watch, or came later with older times, as a load or a copy may give it."""
        return (first and path in self._there_at_first) or (tree.has_files and tree.newest_ns < self._since_ns)

    def _begin(self) -> None:
        retention.remove_leftovers(self.path)
        if not self._options.existing:
            for entry in self._recogniser.entries.values():
                if entry.is_old:
                    self._recogniser.note_saved(entry, entry.tree)

    def _recognise_saved(self, last: bool) -> None:
        """Pass over what was there and was saved before, as soon as the store tells. At the end this is not waited for:
        twice is better than never.
        """
        old = [entry for entry in self._recogniser.entries.values() if entry.is_old and entry.is_unsaved]
        if not old or self._knows_what_was_saved:
            return
        try:
            self._already_saved.learn()
            self._saver.forget("")
            for entry in sorted(old, key=lambda entry: entry.order):
                if self._already_saved.has(entry):
                    self._recogniser.note_saved(entry, entry.tree)
        except CheckpointError as error:
            self._saver.note_failure("", f"What was saved before cannot be listed: {error}")
            if not last:
                return
        self._knows_what_was_saved = True
        self._recogniser.expect_leftovers(self._began_ns)

    def _capture_early(self) -> None:
        """Capture what stands still: it may be gone before it counts as finished."""
        for entry in filter(self._may_be_saved, self._recogniser.to_capture()):
            entry.captured = self._captures.capture(entry)
            if entry.captured is None:
                self._recogniser.note_captured_too_early(entry)
        self._captures.drop_all_but(self._recogniser.captures())

    # -- saving ----------------------------------------------------------------------------------------------------

    def _save_gone(self, *, last: bool = False) -> None:
        """Save what is gone and was finished, and say what was not."""
        for gone in list(self._recogniser.gone):
            verdict = self._recogniser.judge(gone, last=last)
            saved: bool | None = verdict.whole
            if saved and not self._already_saved.has(gone):
                if not self._saver.may_try(gone.path) or self._is_too_late():
                    continue
                latest = self._is_newest(gone)
                saved = self._saver.save_captured(gone.path, gone.captured, verdict.why, latest=latest)
            if saved is None and (not last or gone.path in self._saver.failures):
                continue
            self._recogniser.gone.remove(gone)
            if saved:
                self._recogniser.note_gone_saved(gone)
                if not last:
                    self._wake.set()  # What comes meanwhile may not stay: look before the next one is saved.
                    return
            else:
                why = "it was written to" if verdict.whole else verdict.why
                log.warning(f"{gone.path} has gone before it was saved: {why}")

    def _save_finished(self, last: bool) -> None:
        found = [item for item in self._recogniser.finished(last=last) if self._may_be_saved(item.entry)]
        for entry, why in found:
            if self._is_too_late():
                break
            if self._already_saved.has(entry):  # It was out of sight for a while.
                self._recogniser.note_saved(entry, entry.tree)
                continue
            save = self._save_group if entry.members else self._saver.save
            if save(entry, why, latest=self._is_newest(entry)):
                self._recogniser.note_saved(entry, entry.tree)
                entry.captured = None

    def _save_group(self, entry: Entry, why: str, *, latest: bool) -> bool:
        """Save files that belong together: no directory has them alone, so they are captured into one."""
        if entry.captured is None or entry.captured.tree != entry.tree:
            entry.captured = self._captures.capture(entry, finished=True)
        if entry.captured is None:
            return False
        saved = self._saver.save_captured(entry.path, entry.captured, why, latest=latest)
        if saved is False:
            self._recogniser.note_captured_too_early(entry)
        return bool(saved)

    def _is_newest(self, entry: Entry | Gone) -> bool:
        """Whether a retry should begin with it."""
        return self._recogniser.is_newest(entry) and not self._already_saved.outranks(entry)

    def _may_be_saved(self, entry: Entry) -> bool:
        return self._saver.may_try(entry.path) and (self._knows_what_was_saved or not entry.is_old)

    def _is_too_late(self) -> bool:
        return self._end is not None and time.monotonic() > self._end[1]

    def _retain(self) -> None:
        for entry in retention.retain(self.path, self._options, self._recogniser, self._already_saved):
            self._recogniser.forget(entry)
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._saver.forget(entry.path)
        self._already_saved.forget(entry.path)

    # -- what is left ----------------------------------------------------------------------------------------------

    def _is_worth_waiting(self, give_up: float, deadline: float) -> bool:
        """Whether another round may bring more: for what is written to until ``give_up``, for room in the backlog until
        ``deadline``.
        """
        failures = self._saver.failures
        waiting = [entry.path for entry in self._recogniser.pending()] if self._was_there else []
        waiting += [gone.path for gone in self._recogniser.gone if gone.path in failures]
        written_to = any(path not in failures for path in waiting)
        needs_room = any(path in failures and failures[path].needs_room for path in waiting)
        now = time.monotonic()
        return (written_to and now < give_up) or (needs_room and now < deadline)

    def _leftovers(self) -> list[str]:
        """What is not saved at the end, and why."""
        left = [self._why(entry) for entry in self._recogniser.pending()]
        for gone in self._recogniser.gone:
            failure = self._saver.failures.get(gone.path)
            left.append(failure.why if failure else f"{gone.path} has gone, and there was no time to save it")
        if not self._has_looked:
            left.append(f"{self.path} never came into being")
        left += [*self._scanner.unreadable.values(), *filter(None, [self._trouble])]
        # Nothing says that these were ever finished, so nothing is missing.
        for entry in self._recogniser.never_finished():
            log.warning(f"left out: {self._why(entry)}")
        return left

    def _why(self, entry: Entry) -> str:
        if entry.path in self._saver.failures:
            return self._saver.failures[entry.path].why
        if entry.is_open:
            return f"{entry.path} is open for writing"
        if self._options.done is not None and entry.marker is None:
            return f"{entry.path} has no {self._options.done}"
        if entry.lacks:
            return f"{entry.path} lacks {entry.lacks}"
        if entry.is_leftover:
            return f"{entry.path} was left by an earlier attempt, perhaps half-written"
        if lacking := self._recogniser.lacking(entry):
            return f"{entry.path} lacks {lacking}, which the one before it has"
        return f"{entry.path} was written to a short time ago, and nothing says that it is finished"
