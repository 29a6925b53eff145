"""Entry point of the agent's process, ``agent <lock> <socket> <spool>``. ``child.command`` makes the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys


def main(arguments: list[str]) -> None:
    """Run the agent, with the descriptors that were handed over."""
    lock, listening, directory = int(arguments[0]), int(arguments[1]), arguments[2]
    _close_all_but({0, 1, 2, lock, listening})
    # The uploader must not keep the lock or the socket alive.
    os.set_inheritable(lock, False)
    os.set_inheritable(listening, False)

    from ..config import SWITCH_INTERVAL_S, Config
    from ..errors import CheckpointError
    from ..spool.spool import Spool
    from ..system.processes import ignore_terminal_signals, raise_descriptor_limit
    from . import naming
    from .agent import Agent

    ignore_terminal_signals()
    raise_descriptor_limit()
    try:
        spool, config = Spool.open(directory), Config.from_env()
        listener = socket.socket(fileno=listening)
        with contextlib.suppress(OSError):  # The disk may be full; it is tried again by each look after the spool.
            naming.name_socket(spool, naming.name_of(listener), os.getpid())
        agent = Agent(spool, listener, config, guarded=True)
        signal.signal(signal.SIGTERM, lambda *_: agent.terminate())
        # The guard's threads are waited for by trainers: by default each would wait 5 ms for its turn.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # A saver's doorbell must not take the saver's CPU away at once. This thread only: the guard's started before.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        agent.run()
    except CheckpointError as error:
        sys.exit(f"async_ckpt agent: {error}")


def _close_all_but(keep: set[int]) -> None:
    """Descriptors that the task's C libraries leave open across exec (devices, sockets) are not ours to hold."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # The listing's own descriptor.
