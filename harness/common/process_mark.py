"""A word in the environment of processes that somebody starts, and of those that these start: by it they are found."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_NAME = "ASYNC_CKPT_TEST_MARK"


class ProcessMark:
    """No two have the same word, whoever makes them: what is found may be killed."""

    def __init__(self) -> None:
        self.environment = {_NAME: secrets.token_hex(8)}

    def processes(self) -> list[int]:
        """Those that live, without this one."""
        ((name, word),) = self.environment.items()
        sought, found = f"{name}={word}".encode(), []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if sought in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and int(pid) != os.getpid():
                    found.append(int(pid))
        return found
