"""Leases on one file from two sides: whoever writes waits for one copy, and for nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own, which has the signal blocked in every thread.
_CODE = """
import os, signal, sys
from async_ckpt.agent.guard import Guard, Held
from async_ckpt.snapshot import lease

signal.pthread_sigmask(signal.SIG_BLOCK, [lease.LEASE_SIGNAL])
folder, same = sys.argv[1], sys.argv[2] == "same"
captured, loaded = folder + "/captured", folder + "/loaded"
with open(captured, "wb") as file:
    file.write(b"weights")
os.link(captured, loaded)
status = os.stat(captured)
guard = Guard(lambda identity, path, why: print(path, why or "private", flush=True))

def held(fd):
    return Held(os.dup(fd), captured, 7, status.st_mtime_ns, origin=loaded)

savers = os.open(captured, os.O_RDONLY)
loads = savers if same else os.open(captured, os.O_RDONLY)
for fd in {savers, loads}:
    assert lease.take(fd, os.getpid())
guard.add("0.x.0", "w", held(savers))
guard.add("0.x.0", "w", held(loads))
assert guard.count() == 1 and guard.stands("0.x.0", "w") and not lease.is_breaking(loads)
# Both descriptors stay open here, as in the processes that took the leases.
with open(loaded, "r+b") as file:
    file.write(b"W")
assert open(captured, "rb").read() == b"weights"
guard.stop()
"""


def write_to_a_file_with_two_leases(folder: Path, whose: str) -> str:
    command = [sys.executable, "-c", _CODE, str(folder), whose]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_lease_that_is_sent_again_is_one_lease(tmp_path: Path) -> None:
    assert write_to_a_file_with_two_leases(tmp_path, "same") == "w private\n"


def test_a_loads_lease_takes_the_place_of_the_savers(tmp_path: Path) -> None:
    assert write_to_a_file_with_two_leases(tmp_path, "another") == "w private\n"
