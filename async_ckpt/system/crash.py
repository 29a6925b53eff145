"""Named points at which a process kills itself, for the crash tests.

``METAFLOW_ASYNC_CKPT_CRASH_AT=<name>@<file>``: whoever reaches the point first makes the file and dies; later ones go
on.
"""

from __future__ import annotations

import os
import signal

from ..config import ENV_PREFIX

_NAME, _, _MARKER = os.environ.get(f"{ENV_PREFIX}CRASH_AT", "").partition("@")


def crash_point(name: str) -> None:
    """SIGKILL this process if it was asked to die here: no handler runs, nothing is flushed."""
    if not _NAME or name != _NAME:
        return
    try:
        os.close(os.open(_MARKER, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
