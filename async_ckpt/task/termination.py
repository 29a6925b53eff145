"""What a task does after a SIGTERM: it uploads those checkpoints that can still be stored in time.

Spot instances, pods and batch systems send a SIGTERM before they kill, and so does Metaflow's monitor of spot
instances. By default the process would end at once, and on a pod nothing lives longer than a second after it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

from ..config import TERMINATION_MARGIN_S
from ..errors import CheckpointError
from .checkpointer import Checkpointer

log = logging.getLogger(__name__)


class Termination:
    """Handles SIGTERM where nobody else does; ``install`` it in the main thread, and ``uninstall`` it at the end.

    Training goes on meanwhile, and may save: the newest goes first. Then the process ends as SIGTERM ends one.

    Parameters
    ----------
    checkpointer : Checkpointer
        The task's.
    grace_s : float
        Seconds to live on at most.
    """

    def __init__(self, checkpointer: Checkpointer, grace_s: float) -> None:
        self._checkpointer, self._grace_s = checkpointer, grace_s
        self._pid = os.getpid()
        self._begun = self._done = self._installed = False

    def install(self) -> None:
        """Handle SIGTERM, unless the program has a handler of its own: that knows better when to end."""
        if threading.current_thread() is not threading.main_thread() or self._grace_s <= 0:
            return
        handler = signal.getsignal(signal.SIGTERM)
        if handler is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
        is_blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if is_blocked or handler is signal.SIG_IGN:
            log.warning(
                f"SIGTERM is {'blocked' if is_blocked else 'ignored'} in this process, perhaps by who started it: it "
                "cannot bring in what was saved before it is killed. A retry on this machine does"
            )

    def uninstall(self) -> None:
        """SIGTERM ends the process at once again."""
        if self._installed and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._installed = False

    def _handle(self, number: int, frame: Any) -> None:
        # A forked child has inherited the handler, but not the checkpointer's threads.
        if self._done or os.getpid() != self._pid:
            self._end_now()
        elif not self._begun:
            self._begun = True
            # In a thread, because this one may have been interrupted anywhere, with any lock held.
            try:
                threading.Thread(target=self._bring_in, name="async_ckpt-termination", daemon=True).start()
            except RuntimeError:  # No thread can be had: the process ends as if nobody had handled the signal.
                self._end_now()

    def _bring_in(self) -> None:
        deadline = time.monotonic() + self._grace_s
        limit = max(self._grace_s - TERMINATION_MARGIN_S, 0.0)
        try:
            log.info(f"SIGTERM: saved checkpoints are brought in for up to {limit:g} s, the newest first")
            left = self._checkpointer.hurry(limit)
            if left:
                lost_s = self._checkpointer.lost_with_machine_s()
                lost = "" if lost_s is None else f"; with this machine the work of the last {lost_s:.0f} s is lost"
                log.warning(f"Not in the store: {', '.join(left)}{lost}")
            else:
                log.info("All that was saved is in the store")
        except CheckpointError as error:
            log.warning(f"After the SIGTERM: {error}")
        finally:  # Whatever happened, whoever sent the signal wants the process to end.
            self._done = True
            os.kill(self._pid, signal.SIGTERM)
            # The main thread handles it between two of its instructions; one that is in a long call is not waited for.
            time.sleep(max(deadline - time.monotonic(), TERMINATION_MARGIN_S))
            os.kill(self._pid, signal.SIGKILL)

    def _end_now(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
