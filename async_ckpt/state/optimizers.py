"""Holds up the optimizers of torch while a state is copied in the background: they would write to it.

Not left to the versions of tensors alone, which tell of a write after it was made: fused optimizers count none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Protocol

from ..config import Config
from ..errors import CheckpointError


class Copied(Protocol):
    """What is copied in the background."""

    def await_copy(self, timeout_s: float) -> None: ...


#: What each optimizer waits for before its next step.
_copied: list[Copied] = []
_hooked = False


def hold_optimizers(staging: Copied) -> None:
    """Before their next step all optimizers of torch in this process wait until a state is copied."""
    global _hooked
    if "torch" not in sys.modules:
        return
    _copied.append(staging)
    if not _hooked:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(_hold)
        _hooked = True


def _hold(*_: object) -> None:
    limit = Config().flush_timeout_s
    while _copied:
        with contextlib.suppress(CheckpointError):  # The log says it, and whoever waits for the checkpoint hears it.
            _copied[0].await_copy(limit)
        with contextlib.suppress(IndexError):
            _copied.pop(0)


# The thread that copies does not exist in a child.
os.register_at_fork(after_in_child=_copied.clear)
