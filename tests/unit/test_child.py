"""What a child of the agent is told as soon as it is there."""

from __future__ import annotations

import os
import selectors
import socket
from typing import Any

import pytest

from async_ckpt.agent.child import Child
from async_ckpt.config import Config
from async_ckpt.ipc import protocol
from harness.common.clock import StillClock


class Fake:
    """A child that only listens."""

    def __init__(self) -> None:
        self.sock, self._theirs = socket.socketpair()
        self.pid = os.getpid()

    def heard(self) -> list[dict[str, Any]]:
        self._theirs.setblocking(False)
        data, _ = protocol.receive(self._theirs)
        return [message for message, _ in protocol.Decoder().feed(data, [])]

    def stop(self) -> None:
        self.sock.close()
        self._theirs.close()


@pytest.mark.parametrize("bytes_per_s", [0, 5_000_000])
def test_a_new_child_is_told_the_pace_that_the_last_one_had(bytes_per_s: int) -> None:
    started: list[Fake] = []

    def start() -> Fake:
        started.append(Fake())
        return started[-1]

    told = [{"op": "rate", "bytes_per_s": bytes_per_s}] if bytes_per_s else []
    with selectors.DefaultSelector() as selector:
        child = Child(selector, start, Config(), StillClock(), lambda message: None, lambda spoke: None)
        assert child.ensure()
        child.set_rate(bytes_per_s)
        child.set_rate(bytes_per_s)  # Which is no news.
        assert started[0].heard() == [{"op": "priority", "idle": True}, *told]
        child.renew()
        assert child.ensure()
        assert started[1].heard() == [{"op": "priority", "idle": True}, *told]
        child.stop()
