"""The thread that goes round: look, decide, save, give the disk back, wait."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from ..config import Config
from ..errors import CheckpointError, WatchError, os_reason
from ..system.files import given_path
from . import retention
from . import tree as trees
from .budget import SHORTEST_S, Budget
from .departed import Departed
from .entry import Entry
from .events import Events
from .held import Holding
from .looking import Looking
from .nothing import Nothing
from .options import WatchOptions
from .recogniser import HOLD, Recogniser
from .saving import Saver, Saving
from .tree import Tree

#: At the end, what goes on being written to is waited for so many seconds, or ten times the quiet time.
_END_S = 60.0

_SHOWN = 5

#: By how much the clocks of file systems may be behind, in nanoseconds.
_CLOCKS_NS = 2_000_000_000

#: The thread keeps the limit by itself, in seconds; where a save is under way, it is not waited for as long.
_MARGIN_S, _SAVING_S = 10.0, 1.0


class Watch:
    """Saves what is finished in a directory, until it is stopped; a context manager.

    Parameters
    ----------
    saver : Checkpointer
        Saves.
    path : str
        The directory; it may come later.
    options : WatchOptions
        What counts, and how it is saved.
    config : Config
        ``watch_settle_s``, ``rescan_s``, ``flush_timeout_s``.
    began_ns : int
        When this attempt began (wall clock): the last that was written before may be half, as its writer was killed.
        0: there was no attempt before.
    report : callable
        Gets lines for people, from the watch's thread.
    """

    def __init__(
        self,
        saver: Saver,
        path: str | os.PathLike[str],
        options: WatchOptions,
        config: Config,
        *,
        began_ns: int = 0,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = given_path(path)
        self._options, self._config, self._began_ns = options, config, began_ns
        self._settle_s = config.watch_settle_s if options.settle is None else options.settle
        self._log = report
        self._recogniser = Recogniser(
            self._settle_s, needs_marker=options.done is not None, clock=time.monotonic, report=self._report
        )
        self._saving = Saving(
            saver, self.path, options, config, began_ns=began_ns, clock=time.monotonic, report=self._report
        )
        self._holding = Holding(self.path, saver.new_held_directory, config, self._report)
        self._wake = threading.Event()
        self._looking = Looking(
            self.path,
            options,
            Events(wake=self._wake.set, report=self._report),
            self._report,
        )
        self._was_there: bool | None = None
        #: What was last written before that is none of a trainer's that runs now (wall clock, in nanoseconds).
        self._since_ns = time.time_ns() - _CLOCKS_NS
        # Now, not when the thread comes to look: what happens from here on is seen.
        self._old = self._looking.begin()
        self._looked = False
        self._nothing = Nothing(self.path, options, self._report)
        self._trouble = ""
        self._end: tuple[bool, float] | None = None
        self._left = ["the watch ended before its time"]  # Until it has ended in its time.
        self._has_ended = False
        self._knows = False
        self._budget = Budget()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="async_ckpt-watch", daemon=True)
        self._thread.start()

    @property
    def saved(self) -> int:
        """How many checkpoints this watch has saved."""
        return self._saving.count

    def _report(self, line: str) -> None:
        # File names may hold anything. And where the log is gone, nobody can be told: saving goes on.
        with contextlib.suppress(OSError, ValueError):
            self._log(f"watch: {line}".encode("utf-8", "backslashreplace").decode())

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
        self._thread.join(limit + _SAVING_S)
        if not self._saving.is_under_way:
            self._thread.join(_MARGIN_S - _SAVING_S)
        self._has_ended = True
        left = ["a save is still under way"] if self._thread.is_alive() else self._left
        if left and complete:
            more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            raise WatchError(
                f"Not all that was watched is saved: {'; '.join(left[:_SHOWN])}{more}",
                where=self.path, hint="It is still on the disk",
            )  # fmt: skip
        for line in left:
            self._report(f"left out: {line}")

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(complete=kind is None)

    # -- going round -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (end := self._end) is None:
            self._wake.clear()
            self._round(last=False)
            pause = min(self._config.rescan_s, self._settle_s / 4, self._recogniser.soon_s())
            self._wake.wait(max(pause, SHORTEST_S))
            # Thousands of events, or a large directory, are no reason to take the trainer's core.
            self._ending.wait(self._budget.rest_s())
        complete, deadline = end
        give_up = min(time.monotonic() + max(_END_S, HOLD * self._settle_s), deadline)
        self._saving.try_all_again()
        self._round(last=complete)
        while complete and self._is_worth_waiting(give_up, deadline):
            time.sleep(min(self._budget.rest_s(), self._config.rescan_s))
            self._round(last=True)
        pending, before = [], self._saving.count
        if not self._was_there:  # It has gone, and all that was in it.
            pending = self._recogniser.pending()
            self._recogniser.observe({})
        self._save_departed(last=True)
        if self._saving.count - before < len(pending):
            self._trouble = f"{self.path} has vanished"
        self._left = self._leftovers(complete)
        if self._looked and self._saving.count:
            self._nothing.left_out()
        elif self._looked:
            self._nothing.end(self._recogniser.entries.values())
        self._holding.keep(())
        self._looking.end()

    def _round(self, *, last: bool) -> None:
        try:
            began = time.thread_time()
            is_there = self._look(last)
            self._budget.spend(time.thread_time() - began)
            if is_there:
                self._know_again(last)
                self._hold()
                self._saving.begin_round()
                self._save_departed()
                self._save_finished(last)
                self._retain()
            self._trouble = ""
        except Exception as error:  # Whatever it is, the next round may do better; it is told, and at the end.
            reason = f"{error.filename or self.path}: {os_reason(error)}" if isinstance(error, OSError) else repr(error)
            if isinstance(error, CheckpointError):
                reason = str(error)
            if self._trouble != reason:
                self._report(f"not all could be looked at: {reason}")
            self._trouble = reason

    def _look(self, last: bool) -> bool:
        """Take in what is there. False: nothing is."""
        looks = self._looking.look()
        if looks is None:
            if self._was_there is not False:
                self._say_it_is_missing()
            self._was_there = False
            return False
        was_there, self._was_there = self._was_there, True
        if was_there is False:
            self._report(f"{self.path} is there{' again' if self._looked else ''}")
        first, self._looked = not self._looked, True
        gone = self._recogniser.observe(looks, old={p for p in looks if self._is_old(p, looks[p].tree, first)})
        waiting = {departed.path for departed in self._recogniser.departed}
        for entry in gone:
            if entry.is_due and entry.path not in waiting:
                self._report(f"{entry.path} has gone before it was {'saved as it was' if entry.saved else 'saved'}")
            self._saving.forget(entry.path)
        if first:
            self._begin()
        self._nothing.look(looks)
        early, final = self._recogniser.to_ask(last=last)
        # What is held is asked again before it is saved, and then of mappings as well.
        is_open = self._looking.open(early, mapped=False) | self._looking.open(final, mapped=True)
        self._recogniser.note_open(is_open)
        return True

    def _is_old(self, path: str, tree: Tree, first: bool) -> bool:
        """Whether it was there before, or was brought here as it was: a load, or a copy, may give back its times."""
        return (first and path in self._old) or (trees.has_files(tree) and trees.newest_ns(tree) < self._since_ns)

    def _begin(self) -> None:
        retention.remove_leftovers(self.path, self._report)
        if not self._options.existing:
            for entry in filter(lambda entry: entry.is_old, list(self._recogniser.entries.values())):
                self._recogniser.note_saved(entry, entry.tree)

    def _say_it_is_missing(self) -> None:
        if self._was_there is None:
            self._report(f"{self.path} does not exist yet: it is waited for")
        else:
            self._report(f"{self.path} has vanished: it is waited for until it comes back")

    # -- saving ----------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Capture what stands still, as it may be gone before it counts as finished."""
        for entry in filter(self._may_be_saved, self._recogniser.to_hold()):
            entry.held = self._holding.hold(entry)
            if entry.held is None:
                self._recogniser.was_held_too_early(entry)
        self._holding.keep(self._recogniser.holds())

    def _save_departed(self, *, last: bool = False) -> None:
        """Save what was finished, as its end tells, and say what was not."""
        for departed in list(self._recogniser.departed):
            if not last and self._recogniser.may_wait(departed):
                continue
            verdict = self._recogniser.judge(departed, last=last)
            saved: bool | None = verdict.whole
            if saved and not self._saving.was_saved(departed):
                if not self._saving.may_try(departed.path) or self._is_too_late():
                    continue
                saved = self._saving.save_held(
                    departed.path, departed.held, verdict.why, latest=self._is_newest(departed)
                )
            if saved is None and (not last or departed.path in self._saving.errors):
                continue
            self._recogniser.departed.remove(departed)
            if saved:
                self._recogniser.note_published(departed)
                if not last:
                    self._wake.set()  # What comes meanwhile may not last: look before the next one is saved.
                    return
            else:
                why = "it was written to" if verdict.whole else verdict.why
                self._report(f"{departed.path} has gone before it was saved: {why}")

    def _is_too_late(self) -> bool:
        return self._end is not None and time.monotonic() > self._end[1]

    def _save_finished(self, last: bool) -> None:
        found = [item for item in self._recogniser.finished(last=last) if self._may_be_saved(item.entry)]
        for entry, why in found:
            if self._is_too_late():
                break
            if self._saving.was_saved(entry):  # It was out of sight for a while.
                self._recogniser.note_saved(entry, entry.tree)
                continue
            latest = self._is_newest(entry)
            save = self._save_group if entry.members else self._saving.save
            if (tree := save(entry, why, latest=latest)) is not None:
                self._recogniser.note_saved(entry, tree)
                entry.held = None

    def _is_newest(self, entry: Entry | Departed) -> bool:
        """Whether a retry should begin with it."""
        return self._recogniser.is_newest(entry) and not self._saving.is_outranked(entry)

    def _save_group(self, entry: Entry, why: str, *, latest: bool) -> Tree | None:
        """Save files that belong together: as no directory has them alone, as they are held."""
        if entry.held is None or entry.held.tree != entry.tree:
            entry.held = self._holding.hold(entry, early=False)
        if entry.held is None:
            return None
        saved = self._saving.save_held(entry.path, entry.held, why, latest=latest)
        if saved is False:
            self._recogniser.was_held_too_early(entry)
        return entry.tree if saved else None

    def _may_be_saved(self, entry: Entry) -> bool:
        return self._saving.may_try(entry.path) and (self._knows or not entry.is_old)

    def _know_again(self, last: bool) -> None:
        """Pass over what was there and was saved before; as soon as the store tells, at the end without it: twice is
        better than never.
        """
        old = [entry for entry in self._recogniser.entries.values() if entry.is_old and entry.is_due]
        if not old or self._knows:
            return
        if self._saving.learn():
            for entry in sorted(old, key=lambda entry: entry.order):
                if self._saving.was_saved(entry):
                    self._recogniser.note_saved(entry, entry.tree)
        elif not last:
            return
        self._knows = True
        self._recogniser.expect_orphans(self._began_ns)

    def _retain(self) -> None:
        for entry in retention.retain(self.path, self._options, self._recogniser, self._saving, self._report):
            self._recogniser.forget(entry)
            self._saving.forget(entry.path)

    # -- what is left ----------------------------------------------------------------------------------------------

    def _is_worth_waiting(self, give_up: float, deadline: float) -> bool:
        """Whether another round may bring more: for what is written to until ``give_up``, for room in the backlog until
        ``deadline``.
        """
        now, saving = time.monotonic(), self._saving
        waiting = [entry.path for entry in self._recogniser.pending()] if self._was_there else []
        waiting += [departed.path for departed in self._recogniser.departed if departed.path in saving.errors]
        return any(
            now < (deadline if path in saving.backlog else give_up)
            for path in waiting
            if path in saving.backlog or path not in saving.errors
        )

    def _leftovers(self, complete: bool) -> list[str]:
        """What is not saved at the end, and why."""
        left = [self._why(entry) for entry in self._recogniser.pending()]
        left += [self._saving.errors[departed.path] for departed in self._recogniser.departed]
        if not self._looked:
            left.append(f"{self.path} never came into being")
        left += [*self._looking.unreadable.values(), *filter(None, [self._trouble])]
        # Nothing says that they were ever finished, so nothing is missing.
        for entry in self._recogniser.hopeless():
            self._report(f"left out: {self._why(entry)}")
        return left

    def _why(self, entry: Entry) -> str:
        if entry.path in self._saving.errors:
            return self._saving.errors[entry.path]
        if entry.is_open:
            return f"{entry.path} is open for writing"
        if self._options.done is not None and not entry.marked:
            return f"{entry.path} has no {self._options.done}"
        if entry.lacks:
            return f"{entry.path} lacks {entry.lacks}"
        if entry.is_orphan:
            return f"{entry.path} was left by an earlier attempt, perhaps half-written"
        if lacking := self._recogniser.lacking(entry):
            return f"{entry.path} lacks {lacking}, which the one before it has"
        return f"{entry.path} was written to a short time ago, and nothing says that it is finished"
