"""Holds up the optimizers of torch while a state is copied in the background: they would write to it.

Not left to the versions of tensors alone, which tell of a write after it was made: fused optimizers count none.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol

from ..config import Config
from ..errors import CheckpointError


class Copied(Protocol):
    """What is copied in the background; ``copied``: that is over."""

    copied: threading.Event

    def await_copy(self, timeout_s: float) -> None: ...


#: What each optimizer waits for before its next step, each by its own number.
_copied: dict[int, Copied] = {}
_hooked = False


def hold_optimizers(staging: Copied) -> None:
    """Before their next step all optimizers of torch in this process wait until a state is copied, which has tensors of
    torch.
    """
    global _hooked
    # Where no optimizer ever steps, those whose copy is over would pile up, with all that their states hold.
    for number, other in list(_copied.items()):
        if other.copied.is_set():
            _copied.pop(number, None)
    _copied[id(staging)] = staging
    if not _hooked:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(_hold)
        _hooked = True


def _hold(*_: object) -> None:
    limit = Config().flush_timeout_s
    for number, staging in list(_copied.items()):
        with contextlib.suppress(CheckpointError):  # The log says it, and whoever waits for the checkpoint hears it.
            staging.await_copy(limit)
        _copied.pop(number, None)


# The thread that copies does not exist in a child.
os.register_at_fork(after_in_child=_copied.clear)
