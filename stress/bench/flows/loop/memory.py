"""What a task and its agent have in memory, in bytes. Files in memory count once, whoever maps them."""

import contextlib
import glob
import os

from commands import descendants
from metaflow import current

_IN_MEMORY = "/dev/shm/.async_ckpt-*"


def sample():
    """``trainer``, ``agent``, ``uploader``: their own memory, without what is shared; ``staged``: states in memory."""
    agent = current.checkpoint.status()["pid"]
    return {
        "trainer": _own_bytes(os.getpid()), "agent": _own_bytes(agent),
        "uploader": sum(map(_own_bytes, descendants(agent))), "staged": _staged_bytes(),
    }  # fmt: skip


def _own_bytes(pid):
    """Anonymous memory and mapped files, such as libraries; of what several processes map, each its part."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        lines = dict(line.split(":") for line in file.read().splitlines()[1:])
        return sum(int(lines[key].split()[0]) << 10 for key in ("Pss_Anon", "Pss_File"))
    return 0


def _staged_bytes():
    """Of all files of this task's spool in memory: what has several names counts once."""
    spool = os.path.basename(current.checkpoint._checkpointer.spool.directory)
    found = {}
    for path in glob.glob(f"{_IN_MEMORY}/{spool}-*/**", recursive=True):
        with contextlib.suppress(OSError):
            facts = os.stat(path)
            found[facts.st_ino] = facts.st_blocks * 512
    return sum(found.values())
