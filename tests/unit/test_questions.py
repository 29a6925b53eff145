"""Who waits for what: looked at alone when it comes, and again and again until it is answered."""

from __future__ import annotations

from typing import Any, cast

from async_ckpt.agent.questions import MAX_QUESTIONS, Questions
from async_ckpt.ipc.protocol import Message
from async_ckpt.ipc.server import Connection
from async_ckpt.system.clock import REAL_CLOCK


class Client:
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Message) -> None:
        self.sent.append(message["seq"])


class Scene:
    """``true`` has come about; ``looked`` is what was looked at, and whether for the first time."""

    def __init__(self) -> None:
        self.true: set[str] = set()
        self.looked: list[tuple[str, bool]] = []
        self.questions = Questions(self.answer, REAL_CLOCK)

    def answer(self, message: Message, first: bool, late: bool) -> Message | None:
        self.looked.append((message["op"], first))
        return {"late": late} if late or message["op"] in self.true else None

    def ask(self, client: Client, op: str, sequence: int = 1, limit_s: float = 1e9) -> None:
        self.questions.add(cast(Connection, client), {"op": op, "seq": sequence}, limit_s)


def test_one_that_comes_has_no_other_looked_at() -> None:
    scene, one, other = Scene(), Client(), Client()
    scene.ask(one, "wait")
    scene.ask(other, "flush")
    scene.ask(other, "room", limit_s=0.0)
    assert scene.looked == [("wait", True), ("flush", True), ("room", True)]
    assert (one.sent, other.sent) == ([], [1])
    scene.looked.clear()
    scene.true.add("wait")
    scene.questions.tick(0.0)
    assert sorted(scene.looked) == [("flush", False), ("wait", False)]
    assert one.sent == [1]
    assert not scene.questions.has("wait")
    assert scene.questions.has("flush")


def test_a_connection_has_so_many_questions_at_once_and_others_do_not_count() -> None:
    scene, one, other = Scene(), Client(), Client()
    for number in range(MAX_QUESTIONS):
        assert not scene.questions.is_full(cast(Connection, one))
        scene.ask(one, "wait", number)
    assert scene.questions.is_full(cast(Connection, one))
    assert not scene.questions.is_full(cast(Connection, other))
    scene.true.add("wait")
    scene.questions.tick(0.0)
    assert one.sent == list(range(MAX_QUESTIONS))
    assert not scene.questions.is_full(cast(Connection, one))


def test_one_that_ends_while_it_is_answered_is_forgotten() -> None:
    scene = Scene()

    class Ending(Client):
        def send(self, message: Message) -> None:
            scene.questions.forget(cast(Connection, self))

    client = Ending()
    scene.ask(client, "wait")
    scene.ask(client, "flush")
    scene.true.add("wait")
    scene.questions.tick(0.0)
    assert not scene.questions.has("flush")
