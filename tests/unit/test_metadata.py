"""Metadata becomes plain JSON, whatever it was, and never fails a save."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import pickle
import types
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_ckpt.cli import store
from async_ckpt.cli.commands import parser
from async_ckpt.config import Config
from async_ckpt.metadata import MetadataNote, NoteLog, plain
from async_ckpt.system.printable import dumps, valid
from async_ckpt.task.listed import CheckpointList
from async_ckpt.task.reference import CheckpointInfo

CONFIG = Config()
UTC = datetime.timezone.utc


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):
    YES = "yes"


@dataclasses.dataclass
class Metrics:
    loss: Any
    parts: Any = None


Point = collections.namedtuple("Point", ["x", "y"])


class Tensor:
    """As torch's: a shape, an ``item()`` and a ``tolist()``; on a device from which it may not come."""

    def __init__(self, value: Any, shape: tuple[int, ...] = (), error: str = "") -> None:
        self.value, self.shape, self.error = value, shape, error

    def tolist(self) -> Any:
        if self.error:
            raise RuntimeError(self.error)
        return self.value

    def __repr__(self) -> str:
        return "tensor(...)"


class OneItem:
    """A number of a library that has no ``tolist()``."""

    shape = ()

    def item(self) -> float:
        return 0.5


class Shop:
    """It has an ``item()``, and is no number."""

    def item(self) -> int:
        raise AssertionError("Nobody asked it to")

    def __repr__(self) -> str:
        return "Shop"


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no")


class Recursive:
    def __repr__(self) -> str:
        return repr(self)


class Numbers(Mapping[Any, Any]):
    """A mapping that is no dict."""

    def __getitem__(self, key: Any) -> Any:
        return {"one": 1}[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(["one"])

    def __len__(self) -> int:
        return 1


class Unreadable(Numbers):
    def __getitem__(self, key: Any) -> Any:
        raise ConnectionError("the server is gone")


def lines(notes: list[MetadataNote]) -> str:
    return "\n".join(note.line for note in notes)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.array(np.longdouble(0.5)), 0.5),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.array(3), 3),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.ma.masked, None),
        (np.datetime64("2026-11-28T12:00:00.123456789"), "2026-11-28T12:00:00.123456789"),
        (np.array(["2026-11-28"], dtype="M8[D]"), ["2026-11-28"]),
        (np.timedelta64(90, "m"), 5400.0),
        (Tensor(0.5), 0.5),
        (Tensor([1, 2], (2,)), [1, 2]),
        (OneItem(), 0.5),
        (datetime.datetime(2026, 11, 28, 12, tzinfo=UTC), "2026-11-28T12:00:00+00:00"),
        (datetime.date(2026, 11, 28), "2026-11-28"),
        (datetime.time(12, 30), "12:30:00"),
        (datetime.timedelta(minutes=1.5), 90.0),
        (Path("/data/x"), "/data/x"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"text", "text"),
        (bytearray(b"text"), "text"),
        (memoryview(b"text"), "text"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({"b", 1, None}, ["b", 1, None]),
        ({frozenset({2, 1}), frozenset({0})}, [[0], [1, 2]]),
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1, 2), [1, 2]),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"b": 1, "a": 2}.keys(), ["b", "a"]),
        ({"b": 1, "a": 2}.values(), [1, 2]),
        ({"b": 1}.items(), [["b", 1]]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Numbers(), {"one": 1}),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (decimal.Decimal("0.5"), 0.5),
        (decimal.Decimal("1e999"), "1E+999"),
        (decimal.Decimal("Infinity"), math.inf),
        (fractions.Fraction(1, 4), 0.25),
        (Metrics(0.5, {"a": np.int64(1)}), {"loss": 0.5, "parts": {"a": 1}}),
        (argparse.Namespace(rate=0.1), {"rate": 0.1}),
        (types.SimpleNamespace(rate=0.1), {"rate": 0.1}),
        (collections.UserString("abc"), "abc"),
        (collections.UserDict(a=1), {"a": 1}),
        (collections.UserList([1]), [1]),
        (1 << 70, 1 << 70),
        (None, None),
        ("ü\udc80", "ü\udc80"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_an_obvious_json_value_becomes_it_without_a_word(value: Any, found: Any) -> None:
    for given, expected in ((value, found), ({"deep": [value]}, {"deep": [found]})):
        converted, notes = plain({"key": given}, CONFIG)
        assert converted == {"key": expected}
        assert type(converted["key"]) is type(expected)
        assert notes == []
        assert json.loads(json.dumps(converted)) == converted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), "<object object>"),
        (1j, "1j"),
        (np.complex64(1j), "1j"),
        (b"\xff", "b'\\xff'"),
        (Config, "<class 'async_ckpt.config.Config'>"),
        (Tensor(None, error="It is on a device that is gone"), "tensor(...)"),
        (Tensor(None, shape=("a",)), "tensor(...)"),  # type: ignore[arg-type]
        (Shop(), "Shop"),
        (Broken(), "<a Broken, whose repr() fails: ValueError>"),
        (Recursive(), "<a Recursive, whose repr() fails: RecursionError>"),
        (decimal.Decimal("sNaN"), "Decimal('sNaN')"),
        (10**5000, "<a int, whose repr() fails: ValueError>"),
        (ValueError("no"), "ValueError('no')"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_none_is_kept_as_its_repr_with_one_warning_that_names_the_key(value: Any, text: str) -> None:
    converted, notes = plain({"epoch": 1, "metrics": {"loss": value, "all": [value, value]}}, CONFIG)
    assert converted == {"epoch": 1, "metrics": {"loss": text, "all": [text, text]}}
    assert [note.key for note in notes] == ["metrics.loss", "metrics.all"]
    assert "'metrics.loss' is kept as text" in notes[0].line
    assert type(value).__name__.removesuffix("64") in notes[0].line


def test_a_long_repr_is_cut() -> None:
    converted, notes = plain({"key": ValueError("x" * 50_000)}, CONFIG)
    assert len(converted["key"]) < 1100
    assert len(notes[0].line) < 400


def test_a_mapping_that_cannot_be_read_costs_nothing_else() -> None:
    converted, notes = plain({"epoch": 1, "remote": Unreadable()}, CONFIG)
    assert (converted["epoch"], type(converted["remote"])) == (1, str)
    assert [note.key for note in notes] == ["remote"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (1, "1"), (1.5, "1.5"), (True, "true"), (None, "null"), (math.nan, "NaN"), ((1, "a"), "(1, 'a')"),
        (np.int64(3), "3"), (Colour.RED, "red"), (Level.HIGH, "3"), (Path("a/b"), "a/b"), (b"ab", "ab"),
        (datetime.date(2026, 11, 28), "2026-11-28"), (frozenset({2, 1}), "[1, 2]"),
    ],
)  # fmt: skip
def test_a_key_is_kept_as_its_text(key: Any, text: str) -> None:
    assert plain({key: 0, "deep": {key: [1]}}, CONFIG) == ({text: 0, "deep": {text: [1]}}, [])


def test_keys_that_are_the_same_as_text_lose_nothing_and_are_told() -> None:
    converted, notes = plain({1: "a", "1": "b", np.int64(1): "c", "1 (2)": "d"}, CONFIG)
    assert sorted(converted.values()) == ["b", "c", "d"], "np.int64(1) and 1 are one key of a dict"
    assert list(converted) == ["1", "1 (2)", "1 (2) (2)"]
    assert "'1 (2)' has its number because two keys are '1' as text" in lines(notes)


def test_a_key_after_a_large_value_is_read_as_any_other() -> None:
    large = "x" * (CONFIG.metadata_bytes - 100)
    converted, _ = plain({"large": large, np.int64(5): 1, (1, 2): [{np.int64(6): 1}]}, CONFIG)
    assert converted == {"large": large, "5": 1, "(1, 2)": [{"6": 1}]}


def test_a_long_key_is_cut() -> None:
    converted, _ = plain({"k" * 5_000_000: 1, "epoch": 2}, CONFIG)
    assert sorted(converted.values()) == [1, 2]
    assert len(json.dumps(converted)) < 2000


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind == "dict" else [value] if kind == "list" else Metrics(value)
    return value


@pytest.mark.parametrize("kind", ["dict", "list", "dataclass"])
@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_what_is_nested_too_deep_is_replaced_and_the_rest_is_kept(kind: str, depth: int) -> None:
    converted, notes = plain({"epoch": 1, "deep": nested(depth, kind)}, CONFIG)
    assert converted["epoch"] == 1
    text = json.dumps(converted)
    assert "<not kept: nested more than 64 deep>" in text
    assert max(text.count("["), text.count("{")) <= 65
    assert len(notes) == 1
    assert "'deep" in notes[0].line
    assert "Save it as a file of the checkpoint" in notes[0].line


def test_depth_that_fits_is_kept() -> None:
    value = nested(60, "list")
    assert plain({"deep": value}, CONFIG) == ({"deep": value}, [])


def test_what_contains_itself_is_replaced_where_it_does() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    tree: dict[str, Any] = {"loop": loop}
    tree["self"] = tree
    metrics = Metrics(1)
    metrics.parts = [metrics]
    tree["metrics"] = metrics
    converted, notes = plain(tree, CONFIG)
    gone = "<not kept: part of itself>"
    assert converted == {"loop": [1, gone], "self": gone, "metrics": {"loss": 1, "parts": [gone]}}
    assert [note.key for note in notes] == ["loop", "self", "metrics.parts"]


def test_what_is_there_twice_contains_no_loop() -> None:
    shared = [1]
    assert plain({"a": shared, "b": [shared, shared]}, CONFIG) == ({"a": [1], "b": [[1], [1]]}, [])


@pytest.mark.parametrize(
    "large",
    [
        "x" * 50_000_000,
        b"x" * 50_000_000,
        ["x" * 1000] * 50_000,
        [[0.1] * 100] * 100_000,
        list(range(90_000)) * 2,
        np.zeros(200_000),
        [[{"step": step, "loss": 0.1}] for step in range(60_000)],
        range(10**12),
        {str(number): number for number in range(200_000)},
    ],
    ids=["text", "bytes", "texts", "rows", "numbers", "array", "history", "range", "dict"],
)
def test_what_is_too_large_is_replaced_and_the_rest_is_kept(large: Any) -> None:
    converted, notes = plain({"before": 1, "state": {"large": large, "step": 7}, "after": [2]}, CONFIG)
    assert (converted["before"], converted["after"], converted["state"]["step"]) == (1, [2], 7)
    assert converted["state"]["large"].startswith("<not kept: larger than ")
    assert [note.key for note in notes] == ["state.large"]
    assert "Save it as a file of the checkpoint" in notes[0].line


def test_of_what_is_too_large_together_the_largest_goes_first() -> None:
    given = {"small": "x" * 100, **{f"part {number}": "x" * (300_000 + number) for number in range(5)}}
    converted, notes = plain(given, CONFIG)
    assert converted["small"] == given["small"]
    kept = [name for name in given if converted[name] == given[name]]
    assert kept == ["small", "part 0", "part 1", "part 2"]
    assert len(json.dumps(converted)) <= CONFIG.metadata_bytes
    assert {note.key for note in notes} > {"part 3", "part 4"}


@pytest.mark.parametrize("character", ["x", "ü", "\n", "\ud800", "😀"])
def test_the_limit_holds_for_what_is_stored(character: str) -> None:
    given = {f"key {number} {character}": [character * 900] * 10 for number in range(1000)}
    converted, _ = plain(given, Config(metadata_bytes=100_000))
    assert 50_000 < len(json.dumps(converted)) <= 100_000 + 1000 * 40


def test_a_limit_that_is_set_lower_counts_for_ordinary_metadata_too() -> None:
    converted, notes = plain({"text": "x" * 90, "epoch": 1}, Config(metadata_bytes=80))
    assert converted == {"text": "<not kept: larger than 1 KiB>", "epoch": 1}
    assert len(notes) == 1


def test_many_mentions_of_few_things_take_no_time() -> None:
    value: Any = [1]
    for _ in range(60):
        value = [value] * 10
    converted, _ = plain({"value": value, "epoch": 1}, CONFIG)
    assert converted == {"value": "<not kept: larger than 1 MiB>", "epoch": 1}


def test_metadata_that_is_large_is_told_to_belong_in_a_file() -> None:
    given = {"history": [0.1] * 10_000}
    converted, notes = plain(given, CONFIG)
    assert converted == given
    assert "stored several times" in lines(notes)
    assert "as a file of the checkpoint" in lines(notes)
    assert plain({"history": [0.1] * 100}, CONFIG)[1] == []


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, {}), ([], []), ([1, np.int64(2)], [1, 2]), ("text", "text"), (3, 3), ((1, 2), [1, 2]),
        (Metrics(1), {"loss": 1, "parts": None}), (Numbers(), {"one": 1}), (np.float32(0.5), 0.5),
    ],
)  # fmt: skip
def test_metadata_that_is_no_mapping_is_kept_as_other_clients_keep_it(given: Any, found: Any) -> None:
    assert plain(given, CONFIG) == (found, [])


def test_metadata_that_is_too_large_as_a_whole_is_still_a_dict() -> None:
    converted, notes = plain({str(number): number for number in range(200_000)}, CONFIG)
    assert converted == {"not kept": "<not kept: larger than 1 MiB>"}
    assert len(notes) == 1


def test_the_users_objects_are_copied_and_not_changed() -> None:
    given = {"t": (1, 2), "n": {"x": None}, "s": {2, 1}, "d": collections.defaultdict(list), "f": math.inf}
    before = pickle.dumps(given)
    converted, _ = plain(given, CONFIG)
    assert pickle.dumps(given) == before
    given["n"]["x"] = 9  # type: ignore[index]
    given["new"] = 1
    assert converted == {"t": [1, 2], "n": {"x": None}, "s": [1, 2], "d": {}, "f": math.inf}
    small = {"epoch": 1}
    converted, _ = plain(small, CONFIG)
    small["epoch"] = 2
    assert converted == {"epoch": 1}


def test_nan_and_infinity_are_kept_for_python_and_are_strings_in_json_for_others() -> None:
    converted, notes = plain({"loss": np.float32("nan"), "best": [math.inf, -math.inf]}, CONFIG)
    assert math.isnan(converted["loss"])
    assert (converted["best"], notes) == ([math.inf, -math.inf], [])
    text = dumps({"metadata": converted})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "metadata": {"loss": "NaN", "best": ["Infinity", "-Infinity"]}
    }


def test_half_a_character_breaks_no_client() -> None:
    text = dumps({"a\udc80": "\ud800", "b": "😀ü"})
    assert json.loads(text) == {"a\\udc80": "\\ud800", "b": "😀ü"}
    _, notes = plain({"a\udc80\n": object()}, CONFIG)
    notes[0].line.encode()
    assert "\n" not in notes[0].line


def test_what_others_nested_deep_is_printed_all_the_same() -> None:
    assert "nested more than 200 deep" in dumps(nested(900, "list"))
    assert valid(nested(150, "dict")) == nested(150, "dict")


def test_equal_metadata_is_equal_json_on_every_rank() -> None:
    """Else a collective save is refused, since its ranks do not save the same."""

    def on_a_rank() -> dict[str, Any]:
        return {"loss": math.nan, "model": object(), "names": {f"name {n}" for n in range(50)}, "f": lambda: 0}

    one, other = (json.dumps(plain(on_a_rank(), CONFIG)[0]) for _ in range(2))
    assert one == other
    assert " at 0x" not in one


def test_a_note_is_said_once_however_many_are_saved() -> None:
    heard: list[str] = []
    said = NoteLog(heard.append)
    for _ in range(5):
        said.say(plain({"loss": object(), "metrics": {"loss": object()}}, CONFIG)[1])
    assert len(heard) == 2


def test_notes_about_ever_new_keys_come_to_an_end() -> None:
    heard: list[str] = []
    said = NoteLog(heard.append)
    for step in range(1000):
        said.say(plain({f"loss {step}": object()}, CONFIG)[1])
    assert len(heard) < 100
    assert "no more is said" in heard[-1]
    _, notes = plain({f"loss {step}": object() for step in range(1000)}, CONFIG)
    assert len(notes) == 11
    assert "990 more values" in notes[-1].line


def test_what_others_wrote_beside_the_key_does_not_break_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"size": None, "name": None, "created_on": 3, "metadata": None},
        {"size": "large", "name": ["x"], "attempt": "0", "version_id": None, "created_on": "x" * 100},
        {"size": 1024, "name": "model", "attempt": 0, "version_id": 1, "metadata": [math.nan]},
    ]
    found = [CheckpointInfo({"key": f"key-{n}", "state": "COMMITTED", **data}) for n, data in enumerate(odd)]
    store.show_list(CheckpointList(found), parser().parse_args(["list"]))
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[-1] for row in rows] == ["key-0", "key-1", "key-2", "key-3"]
    assert [item["key"] for item in json.loads(dumps(found))] == ["key-0", "key-1", "key-2", "key-3"]
