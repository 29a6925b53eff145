"""What a task and its agent have in memory, in bytes. Files in memory count once, whoever maps them."""

import contextlib
import os

from commands import descendants
from metaflow import current


def sample(folder):
    """``trainer``, ``agent``, ``uploader``: their own memory, without what is shared; ``shared``: files below it."""
    agent = current.checkpoint.status()["pid"]
    return {
        "trainer": _own_bytes(os.getpid()), "agent": _own_bytes(agent),
        "uploader": sum(map(_own_bytes, descendants(agent))), "shared": _file_bytes(folder),
    }  # fmt: skip


def _own_bytes(pid):
    """Anonymous memory and mapped files, such as libraries; of what several processes map, each its part."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        lines = dict(line.split(":") for line in file.read().splitlines()[1:])
        return sum(int(lines[key].split()[0]) << 10 for key in ("Pss_Anon", "Pss_File"))
    return 0


def _file_bytes(folder):
    """Of all files below it: what has several names counts once."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                facts = os.stat(os.path.join(place, name))
                found[facts.st_ino] = facts.st_blocks * 512
    return sum(found.values())
