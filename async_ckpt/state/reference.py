"""What ``save_state()`` returns, and how far the state has come by then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, WaitTimeout
from ..spool.journal import FAILED
from ..system.undisturbed import run
from ..task.reference import Reference
from ..task.tracker import Tracker

#: The state of a checkpoint that is not admitted yet.
STAGING = "STAGING"


@dataclass
class Staging:
    """How far one state has come on its way into a buffer, and from there into the spool. Nothing of the state itself:
    what was returned may be kept for long.

    Parameters
    ----------
    hold_training : callable or None
        Has what the training enqueues on devices from now on come after the copies. Returns False where they are made
        on the host, which has to be waited for.
    """

    hold_training: Callable[[], bool] | None
    #: The copy has ended; and so has the admission.
    copied: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    #: Why there is no such checkpoint.
    error: CheckpointError | None = None

    def end(self) -> None:
        """It is admitted, or never will be."""
        self.hold_training = None
        self.ended.set()

    def await_copy(self, timeout_s: float) -> None:
        """Return when the training may write to the state again. On a device the training waits, not the host.

        Raises
        ------
        SnapshotError
            It has written to it already, or the copy failed.
        WaitTimeout
            It is not copied within ``timeout_s`` seconds.
        """
        hold = self.hold_training
        is_over = self.error is not None or self.copied.is_set() or (hold is not None and hold())
        if not is_over and not run(lambda: self.copied.wait(timeout_s)):
            raise WaitTimeout(f"The state is not copied within {timeout_s:g} s")
        if self.error is not None:
            raise self.error


class StateReference(Reference):
    """A saved state: a ``Reference`` that has ``staged()`` as well, and is ``STAGING`` until it is admitted."""

    _staging: Staging

    @classmethod
    def of(cls, reference: dict[str, Any], staging: Staging, tracker: Tracker) -> StateReference:
        made = cls(reference, tracker)
        made._staging = staging
        return made

    def staged(self, timeout: float | None = None) -> StateReference:
        """Return when the training may write to the tensors of the state again. With CUDA tensors the host does not
        wait: what the training enqueues from now on begins after the copies.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None: as long as a flush may take.

        Raises
        ------
        SnapshotError
            Somebody has written to the state before this, or it could not be copied: there is no such checkpoint.
        SpoolError
            It was copied and could not be admitted.
        WaitTimeout
            The copy is still under way.
        """
        limit = self._tracker.config.flush_timeout_s if timeout is None else timeout
        self._staging.await_copy(limit)
        return self

    @property
    def state(self) -> str:
        """``STAGING``, then as ``Reference.state``."""
        if self._staging.error is not None:
            return FAILED
        return super().state if self._staging.ended.is_set() else STAGING

    @property
    def error(self) -> str | None:
        """As ``Reference.error``."""
        if self._staging.error is not None:
            return str(self._staging.error)
        return super().error if self._staging.ended.is_set() else None

    def wait(self, timeout: float | None = None) -> Reference:
        """Wait until it is in the store; see ``Reference.wait``. What ``staged()`` raises is raised as well."""
        limit = self._tracker.config.flush_timeout_s if timeout is None else timeout
        began = time.monotonic()
        if not run(lambda: self._staging.ended.wait(limit)):
            raise WaitTimeout(f"Checkpoint {self.id} is not staged after {limit:g} s")
        if self._staging.error is not None:
            raise self._staging.error
        return super().wait(max(limit - (time.monotonic() - began), 0.0))
