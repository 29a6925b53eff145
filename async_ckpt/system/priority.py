"""How much of the machine a process takes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

#: Numbers of the system call, which the C library does not wrap; the other machines do without.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_IOPRIO_WHO_PROCESS = 1
#: Class in the upper bits, level in the lower; 4 is what a process has that never asked.
_IDLE, _BEST_EFFORT = 3 << 13, 2 << 13 | 4


def set_disk_priority(*, idle: bool, thread: int = 0) -> None:
    """Let a thread (0: this one) have only the disk time that nobody else wants, or its normal share.

    Any user may, both ways; a refusal changes nothing that matters.
    """
    if _IOPRIO_SET is not None:
        ctypes.CDLL(None).syscall(_IOPRIO_SET, _IOPRIO_WHO_PROCESS, thread, _IDLE if idle else _BEST_EFFORT)


def set_priority(*, idle: bool) -> None:
    """Let this process have only the CPU and disk time that nobody else wants, or its normal share.

    Each thread has priorities of its own, so all are set.
    """
    policy = os.SCHED_IDLE if idle else os.SCHED_OTHER
    for thread in map(int, os.listdir("/proc/self/task")):
        # Ordinary users may not leave SCHED_IDLE again; nobody else wants the CPU then anyway.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))
        set_disk_priority(idle=idle, thread=thread)
