"""Which checkpoints artifacts refer to."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from async_ckpt.task.artifacts import checkpoints_in

KEY, OTHER = (
    "mf.checkpoints/checkpoints/artifacts/F/s/a/b/h.0.m.1",
    "mf.checkpoints/checkpoints/artifacts/F/s/a/b/h.0.m.2",
)


@pytest.mark.parametrize(
    "artifact",
    [
        KEY, {"key": KEY, "name": "m"}, [KEY], (1, {"best": {"key": KEY}}), {"a": [[{KEY}]]}, SimpleNamespace(key=KEY),
        frozenset([KEY]),
    ],
)  # fmt: skip
def test_keys_are_found_wherever_they_stand(artifact: Any) -> None:
    assert checkpoints_in({"x": 1, "other": OTHER[:20], "artifact": artifact}) == {KEY}


def test_what_refers_to_itself_ends() -> None:
    loop: list[Any] = [KEY]
    loop.append(loop)
    assert checkpoints_in({"loop": loop}) == {KEY}


def test_numbers_however_many_hide_nothing() -> None:
    assert checkpoints_in({"losses": [0.5] * 1_000_000, "epochs": dict.fromkeys(range(200_000), 1), "best": KEY}) == {
        KEY
    }


def test_what_is_too_large_to_look_through_may_refer_to_anything() -> None:
    assert checkpoints_in({"huge": ["a text"] * 200_000}) is None
    many = [f"{KEY}{number}" for number in range(20_000)]
    assert checkpoints_in({"many": many}) is None


def test_artifacts_may_be_set_meanwhile() -> None:
    artifacts: dict[str, Any] = {"kept": {"key": KEY}}
    over = threading.Event()

    def change() -> None:
        for number in itertools.count():
            artifacts[str(number % 1000)] = number
            artifacts.pop(str((number + 500) % 1000), None)
            if over.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            assert checkpoints_in(artifacts) == {KEY}
    finally:
        over.set()
        thread.join()


class _Odd(Mapping[str, Any]):
    """Somebody's mapping, which cannot be read, and whose attributes cannot either."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, name: str) -> Any:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        raise self._error

    def __len__(self) -> int:
        return 1


class _NoKey:
    @property
    def key(self) -> str:
        raise ValueError("closed")


def test_objects_of_others_do_no_harm() -> None:
    assert checkpoints_in({"file": _Odd(ValueError("closed")), "object": _NoKey(), "best": KEY}) == {KEY}
    assert checkpoints_in({"changes": _Odd(RuntimeError("changed size")), "best": KEY}) is None
