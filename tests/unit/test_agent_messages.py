"""What the log says of checkpoints that are in the store."""

from __future__ import annotations

from async_ckpt.config import STORED_LINE_S, Config
from async_ckpt.task.agent_messages import AgentMessages
from harness.common import log_lines
from harness.common.clock import StillClock
from harness.tasks.task import TASK


def stored(messages: AgentMessages, number: int) -> None:
    messages.receive({"push": "committed", "id": f"0.model.{number}", "size": 5 << 20, "after_s": 1.25})


def test_a_line_says_that_one_is_in_the_store_and_later_ones_are_counted_until_the_next_line() -> None:
    clock = StillClock()
    messages = AgentMessages(TASK, Config(), clock)
    with log_lines.collected() as lines:
        for number in range(4):
            stored(messages, number)
        clock.sleep(STORED_LINE_S)
        stored(messages, 4)
        clock.sleep(STORED_LINE_S)
        stored(messages, 5)
    first = "Checkpoint 0.model.{} (5.0 MiB) is in the store, 1.2 s after its save"
    assert list(lines) == [
        first.format(0), f"{first.format(4)}. So are 3 more that were saved since the last such line", first.format(5),
    ]  # fmt: skip


def test_these_lines_can_be_left_out() -> None:
    messages = AgentMessages(TASK, Config(log_stored=False), StillClock())
    with log_lines.collected() as lines:
        stored(messages, 0)
    assert not list(lines)
