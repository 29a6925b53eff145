"""Signals that a process has inherited as ignored or blocked: its children would never get them either."""

from __future__ import annotations

import signal
import threading

#: What the interpreter itself ignores; ``subprocess`` gives its children the default.
_PYTHONS = {signal.SIGPIPE, signal.SIGXFSZ}


def reset() -> None:
    """Give every signal its usual meaning in this process, and in those that it starts."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    if threading.current_thread() is not threading.main_thread():
        return  # Only that one may, and it did.
    for number in signal.valid_signals():
        if number not in _PYTHONS and signal.getsignal(number) == signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
