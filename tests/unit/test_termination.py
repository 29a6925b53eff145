"""After a SIGTERM the process ends, whatever goes wrong with what it does before."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from harness.flow_runs.environments import with_our_modules

_SCRIPT = """
import os, signal, sys, threading
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.termination import Termination

class Checkpointer:
    def hurry(self, seconds):
        if sys.argv[1] == "a bug":
            raise LookupError("of ours")
        return []

def report(line):
    if sys.argv[1] == "nobody reads its output":
        raise BrokenPipeError(32, "Broken pipe")

def no_thread(self):
    raise RuntimeError("can't start new thread")

if sys.argv[1] == "no thread can be had":
    threading.Thread.start = no_thread
write_lines_with(report)
Termination(Checkpointer(), 3600).install()
os.kill(os.getpid(), signal.SIGTERM)
threading.Event().wait(60)
"""


@pytest.mark.parametrize("what", ["nothing", "a bug", "nobody reads its output", "no thread can be had"])
def test_the_process_ends_by_the_signal_whatever_goes_wrong(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, what], env=with_our_modules(), capture_output=True, timeout=50, check=False
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
