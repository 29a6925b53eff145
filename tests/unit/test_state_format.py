"""The files of a state: what was planned is read back bit for bit, and what is damaged or does not fit is named."""

from __future__ import annotations

import copy
import enum
import gc
import json
import math
import pathlib
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from async_ckpt.errors import IntegrityError, UsageError
from async_ckpt.state.plan import plan
from async_ckpt.state.read import PICKLE_FILE, STATE_FILE, STRUCTURE_FILE, is_state, read_state
from async_ckpt.state.safetensors import MAX_HEADER_BYTES
from async_ckpt.state.tree import MAX_DEPTH
from harness.files.state_files import arrays, same, through, write

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def header_of(directory: Path) -> dict[str, Any]:
    data = (directory / STATE_FILE).read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def structure_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / STRUCTURE_FILE).read_bytes())
    return found


_SIGNALLING_NAN = struct.unpack("<d", b"\x01\0\0\0\0\0\xf4\xff")[0]

PLAIN: dict[str, Any] = {
    "nothing": None,
    "text": ["", "a", "ä\n\"'\\\0", "\ud800", "\ud83d\ude00", "😀"],
    "numbers": [0, -1, 2**63, -(10**5000), True, 0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan, _SIGNALLING_NAN],
    "complex": [1j, complex(-0.0, math.nan), complex(math.inf, -0.0)],
    "bytes": [b"", b"\0\xff", bytearray(b"x")],
    "containers": [(), (1, (2,)), [], {}, set(), {1, "a"}, frozenset({(1, 2)}), deque([1, 2], 5), deque([1])],
    "dicts": [
        {1: "a", "1": "b", None: 0, (1, (2, "x")): 1, 2.5: 2, b"k": 3, False: 4, frozenset({1}): 5},
        {"$tuple": [1]},
        {"": 1, "a.b": 2, "a/b": 3, "a\nb": 4, "'\"": 5, "\ud800": 6, "k" * 10_000: 7, "__metadata__": 8},
        {math.nan: 1, math.inf: 2},
        {np.int64(3): 1, Colour.RED: 2},
        OrderedDict(b=1, a=2),
        defaultdict(dict, {1: {}}),
        defaultdict(None, {1: 2}),
        Counter({80: 1, 120: 2}),
    ],
    "others": [range(3, 9, 2), slice(None, 2), slice("a", None, (1,)), pathlib.Path("a/b"), Point(1, (2,))],
    "members": [Colour.RED, Level.HIGH],
    "numpy": [np.float32(0.1), np.int64(-1), np.bool_(True), np.datetime64("2026-01-01"), np.bytes_(b"ab")],
    "more of numpy": [np.str_(""), np.str_("ä"), np.timedelta64(3, "s"), np.dtype("<f2"), np.longdouble(1) / 3],
    "generators": [random.getstate(), np.random.PCG64(1).state, np.random.RandomState(1).get_state()],
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_values_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    assert same(through(tmp_path, PLAIN[kind]), PLAIN[kind])


def test_a_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    generator, numbers = random.Random(5), np.random.RandomState(5)
    found = through(tmp_path, {"python": generator.getstate(), "numpy": numbers.get_state()})
    wanted = [generator.random(), *numbers.rand(3)]
    generator.setstate(found["python"])
    numbers.set_state(found["numpy"])
    assert [generator.random(), *numbers.rand(3)] == wanted


def test_attributes_of_an_ordered_dict_are_kept(tmp_path: Path) -> None:
    """torch has the versions of a model's modules in one."""
    state = OrderedDict(weight=np.ones(2))
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    found = through(tmp_path, state)
    assert same(found, state)
    assert found._metadata == state._metadata  # type: ignore[attr-defined]


_BASE = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
ARRAYS: dict[str, Any] = {
    "dtypes": [
        np.array([1, 0, 3]).astype(dtype)
        for dtype in (*"?bBhHiIlLefdFDgG", "S3", "U5", "M8[ns]", "m8[25s]", ">i4", ">f8", ">U2")
    ],
    "no dimensions": np.array(3.5),
    "no elements": [np.empty((0, 3)), np.empty((3, 0), np.int8), np.empty(0, ">f4"), np.array([], "S")],
    "not contiguous": [
        _BASE.T, np.asfortranarray(_BASE), _BASE.transpose(1, 0, 2), np.arange(9.0)[::2], np.arange(9.0)[::-1],
        np.arange(12).reshape(3, 4)[::-1, ::-2], np.arange(12).reshape(3, 4)[:, 1],
    ],
    "broadcast": [np.broadcast_to(np.float64(2), (5, 6)), np.broadcast_to(np.arange(3), (4, 3))],
    "windows": np.lib.stride_tricks.sliding_window_view(np.arange(10), 4),
    "bits": np.array([0x7FF0000000000001, 0xFFF8000000000123, 0x8000000000000000], np.uint64).view(np.float64),
    "booleans that are none": np.array([0, 1, 2, 255], np.uint8).view(bool),
    "read-only": np.frombuffer(b"abcd", np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_come_back_bit_for_bit(tmp_path: Path, kind: str, mmap: bool) -> None:
    assert same(through(tmp_path, ARRAYS[kind], mmap=mmap), ARRAYS[kind])


def test_what_lies_dense_in_memory_lies_there_again_in_the_same_order(tmp_path: Path) -> None:
    state = [_BASE.T, np.asfortranarray(_BASE), _BASE.transpose(1, 0, 2), np.zeros((2, 1, 3)).T]
    for each in state:
        assert through(tmp_path, [each])[0].strides == each.strides


def test_an_array_in_the_file_has_its_elements_in_their_order(tmp_path: Path) -> None:
    """Other programs that read the file know nothing of strides."""
    write(plan({"a": _BASE.T}), tmp_path)
    entry = header_of(tmp_path)["a"]
    assert entry == {"dtype": "I32", "shape": [4, 3, 2], "data_offsets": [0, 96]}
    assert (tmp_path / STATE_FILE).read_bytes()[-96:] == _BASE.T.tobytes()


def test_names_are_paths_that_people_can_read(tmp_path: Path) -> None:
    one = np.ones(1)
    state = {
        "model": {"layers.0.weight": one, "layers": [{"weight": one + 1}]}, "optimizer": {"state": {0: {"m": one + 2}}},
        "": one + 3, "a/b": one + 4, "a\n\"b": one + 5, "\ud800": one + 6, "x" * 5000: one + 7, "x" * 5001: one + 8,
        "__metadata__": one + 9, "a": {"b": one + 10}, "a.b": one + 11, "a.b#2": one + 12, "ä": one + 13,
        (1, "t"): one + 14,
    }  # fmt: skip
    assert same(through(tmp_path, state), state)
    names = [name for name in header_of(tmp_path) if len(name) < 100]
    assert names == [
        "__metadata__", "model.layers.0.weight", "model.layers.0.weight#2", "optimizer.state.0.m", "state", "a/b",
        'a\n"b', "\\ud800", "__metadata__#2", "a.b", "a.b#2", "a.b#2#2", "ä", "(1, 't')",
    ]  # fmt: skip
    assert max(map(len, header_of(tmp_path))) < 600


def test_the_library_of_the_format_reads_the_file(tmp_path: Path) -> None:
    base = np.arange(12.0)
    state = {
        "a": {"b.c": base[:4], "t": _BASE.T}, "d": [base[4:8]], "shared": [base[8:11], base[9:]],
        "big": np.array([1.0], ">f8"), "none": np.empty((0, 2)), "one": np.array(1, np.float16),
        "ü\ud800": np.ones(1, bool), "c": np.ones(2, np.complex64),
        "odd": [np.arange(9, dtype=np.uint8)[:5], np.arange(7, dtype=np.uint8)], "text": np.array(["abc"]),
    }  # fmt: skip
    write(plan(state), tmp_path)
    found = load_file(tmp_path / STATE_FILE)
    assert set(found) == set(header_of(tmp_path)) - {"__metadata__"}
    for name, array in (
        ("a.b.c", base[:4]),
        ("a.t", _BASE.T),
        ("d.0", base[4:8]),
        ("shared.0", base[8:]),
        ("one", np.float16(1)),
    ):
        assert same(found[name], np.ascontiguousarray(array).reshape(found[name].shape))
        assert found[name].dtype == array.dtype
    assert found["big"].tobytes() == np.array([1.0], ">f8").tobytes()


def test_an_array_alone_is_a_state(tmp_path: Path) -> None:
    assert same(through(tmp_path, np.arange(3)), np.arange(3))
    assert through(tmp_path, {}) == {}


def test_every_array_is_aligned_and_the_file_has_no_holes(tmp_path: Path) -> None:
    base = np.arange(40, dtype=np.uint8)
    state = [
        np.arange(3, dtype=np.int8), np.float64([1]), np.complex128([1]), np.arange(5, dtype=np.int16),
        [base[1:14], base[8:16].view(np.float32)],  # 14 bytes that need an alignment of 4: what follows needs padding.
        np.float32([2, 3]), np.array(["abc"]), np.empty((0, 2)),
    ]  # fmt: skip
    planned = plan(state)
    assert len(planned.header) % 64 == 0
    position = len(planned.header)
    for piece in planned.pieces:
        assert piece.offset == position
        position += piece.nbytes
        assert piece.nbytes == piece.source.nbytes > 0
    assert position == planned.size
    found = through(tmp_path, state)
    assert same(found, state)
    assert all(array.flags.aligned for array in arrays(found))


def test_the_same_state_is_the_same_file_wherever_it_lies_in_memory() -> None:
    def state() -> dict[str, Any]:
        return {str(number): np.full(number, number, dtype) for number, dtype in enumerate("bhildfdlihb" * 9)}

    one, other = state(), state()
    assert plan(one).header == plan(other).header == plan(copy.deepcopy(one)).header


# Shared memory.


def test_what_shares_memory_is_stored_once_and_shares_it_again(tmp_path: Path) -> None:
    base = np.zeros(1 << 16)
    state = {"tied": [base, base.view(), base], "part": base[5:10], "matrix": base.reshape(256, 256).T[3:5]}
    found = through(tmp_path, state)
    assert plan(state).size < base.nbytes + 4096
    found["tied"][1][7] = 1
    assert found["tied"][0][7] == found["part"][2] == 1
    assert found["tied"][2] is found["tied"][0]
    assert found["tied"][1] is not found["tied"][0]
    found["matrix"][0, 0] = 2
    assert found["tied"][0][3] == 2


def test_a_small_view_of_much_memory_stores_only_what_it_needs() -> None:
    base = np.zeros((1 << 10, 1 << 10))
    assert plan([base[3], base[7:9, 2:4], np.broadcast_to(base[900, 900], (50, 50))]).size < 8192 + 16_000
    assert plan([base[:, 5]]).size < 8192 + 4096


def test_what_follows_each_other_in_one_array_stays_together(tmp_path: Path) -> None:
    base = np.arange(12.0)
    state = {"a": base[:4], "b": base[4:6].reshape(2, 1), "c": base[6:12], "other": np.arange(4.0)}
    found = through(tmp_path, state)
    assert list(header_of(tmp_path))[1:] == ["a", "b", "c", "other"]
    assert structure_of(tmp_path)["together"] == [["a", "b", "c"]]
    assert len(plan(state).pieces) == 2
    assert same(found, state)


# What a state cannot keep.


class Strange:
    pass


def a_circle() -> list[Any]:
    found: list[Any] = [1]
    found.append({"again": found})
    return found


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value], 1: ()} if depth % 2 else (value,)
    return value


class Model:
    """Has a state, and is none."""

    def state_dict(self) -> dict[str, Any]:
        return {}


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "a model": ({"model": Model()}, ["state['model'] is a ", "Save its state_dict()"]),
    "an object": ({"a": [Strange()]}, ["state['a'][0] is a ", "Strange", "pickle=True"]),
    "a function": ({"f": len}, ["state['f']", "builtin_function_or_method", "pickle=True"]),
    "objects in an array": ([np.array([{}])], ["state[0]", "Python objects", "pickle=True"]),
    "records": ([np.zeros(2, "i4,f4")], ["state[0]", "pickle=True"]),
    "a masked array": ([np.ma.zeros(2)], ["MaskedArray", "its data and its mask"]),
    "an array of jax": ([type("ArrayImpl", (), {"__module__": "jaxlib._jax"})()], ["state[0]", "numpy.asarray"]),
    "a circle": (a_circle(), ["state[1]['again'] contains itself"]),
    "too deep": (nested(2 * MAX_DEPTH), ["nested deeper than"]),
    "an array in a key": ({frozenset({1}): 1, "s": {Strange}}, ["state['s'][0]", "type"]),
    "a function of a defaultdict": (defaultdict(lambda: 1), ["state is a collections.defaultdict"]),
    "flags": ({"f": __import__("re").I | __import__("re").M}, ["state['f']", "RegexFlag"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_state_cannot_keep_is_named_with_the_way_out(kind: str) -> None:
    state, words = REFUSED[kind]
    with pytest.raises(UsageError) as refused:
        plan(state)
    for word in words:
        assert word in str(refused.value)


def test_nesting_has_room(tmp_path: Path) -> None:
    for depth in (MAX_DEPTH // 2 - 1, MAX_DEPTH - 1):
        state = nested(depth if depth < MAX_DEPTH // 2 else depth - depth % 2)
        assert same(through(tmp_path, state), state)


def test_what_is_pickled_is_unpickled_only_where_that_is_asked_for(tmp_path: Path) -> None:
    state = {"a": np.ones(3), "odd": [Colour, {1: Strange}], "objects": np.array([{}]), "point": Point(1, 2)}
    planned = plan(state, pickle=True)
    write(planned, tmp_path)
    with pytest.raises(UsageError, match=r"state\['odd'\]\[0\].*pickle=True"):
        read_state(tmp_path)
    found = read_state(tmp_path, pickle=True)
    assert found["odd"] == state["odd"]
    assert found["objects"][0] == {}
    assert same(found["a"], state["a"])
    assert b"Point" not in (planned.pickled or b"")


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(UsageError, match=r"state\['f'\] cannot be pickled"):
        plan({"g": Strange(), "f": lambda: 1}, pickle=True)
    assert plan({"a": 1}, pickle=True).pickled is None


def test_a_pickle_whose_classes_are_gone_is_no_damage(tmp_path: Path) -> None:
    write(plan([Strange()], pickle=True), tmp_path)
    (tmp_path / PICKLE_FILE).write_bytes((tmp_path / PICKLE_FILE).read_bytes().replace(b"Strange", b"Missing"))
    with pytest.raises(UsageError, match="AttributeError"):
        read_state(tmp_path, pickle=True)


# Reading.


def test_mapped_arrays_are_private_and_outlive_the_file(tmp_path: Path) -> None:
    write(plan({"a": np.arange(5)}), tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    found = read_state(tmp_path)
    found["a"][0] = 9
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert read_state(tmp_path)["a"][0] == 0
    for name in (STATE_FILE, STRUCTURE_FILE):
        (tmp_path / name).unlink()
    gc.collect()
    assert list(found["a"]) == [9, 1, 2, 3, 4]


def test_three_gibibytes_in_one_array_are_not_copied_to_be_planned(tmp_path: Path) -> None:
    size = (3 << 30) + 5
    base = np.zeros(size, np.uint8)  # Memory that nobody has touched is none.
    planned = plan({"large": base, "after": np.arange(3)})
    assert planned.size > size
    piece = next(piece for piece in planned.pieces if piece.name == "large")
    with open(tmp_path / STATE_FILE, "wb") as file:
        file.write(planned.header)
        file.truncate(planned.size)
        file.seek(piece.offset + size - 1)
        file.write(b"\x07")
    (tmp_path / STRUCTURE_FILE).write_bytes(planned.structure)
    found = read_state(tmp_path)
    assert found["large"].shape == (size,)
    assert (found["large"][-1], found["large"][-2]) == (7, 0)


def test_no_state_is_no_state(tmp_path: Path) -> None:
    assert not is_state(tmp_path)
    with pytest.raises(UsageError, match="There is no state"):
        read_state(tmp_path)
    write(plan({}), tmp_path)
    assert is_state(tmp_path)


def test_a_newer_version_is_told_from_damage(tmp_path: Path) -> None:
    write(plan({"a": 1}), tmp_path)
    structure = structure_of(tmp_path)
    (tmp_path / STRUCTURE_FILE).write_text(json.dumps({**structure, "version": 2}))
    with pytest.raises(UsageError, match=r"newer version.*Upgrade"):
        read_state(tmp_path)
    (tmp_path / STRUCTURE_FILE).write_text(json.dumps({**structure, "state": [{"$unheard": 1}]}))
    with pytest.raises(IntegrityError, match=r"unknown mark '\$unheard' at state\[0\]"):
        read_state(tmp_path)


def test_a_class_is_looked_up_and_never_imported(tmp_path: Path) -> None:
    write(plan([Colour.RED, Point(1, 2)]), tmp_path)
    text = (tmp_path / STRUCTURE_FILE).read_text()
    for was, becomes in (
        (f"{__name__}:Colour", "this:nothing"),
        (f"{__name__}:Point", "os:stat_result"),
        ('"RED"', '"BLUE"'),
    ):
        (tmp_path / STRUCTURE_FILE).write_text(text.replace(was, becomes))
        with pytest.raises(UsageError):
            read_state(tmp_path)


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Damage to the header, which has the length that it says."""

    def damage(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        changed = change(header)
        text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a part of the length": lambda data: data[:5],
    "a part of the header": lambda data: data[:20],
    "a byte is missing": lambda data: data[:-1],
    "a byte too many": lambda data: data + b"x",
    "a length without end": lambda data: b"\xff" * 8 + data[8:],
    "a length beyond the file": lambda data: MAX_HEADER_BYTES.to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: data[:8] + b"\xff" + data[9:],
    "no object": _header(lambda header: "[]"),
    "nested without end": _header(lambda header: "[" * 100_000),
    "a name twice": _header(lambda header: json.dumps(header)[:-1] + ', "b": ' + json.dumps(header["b"]) + "}"),
    "beyond the end": _header(lambda header: header["b"].update(data_offsets=[0, 1 << 40])),
    "before the begin": _header(lambda header: header["b"].update(data_offsets=[-8, 16])),
    "backwards": _header(lambda header: header["b"].update(data_offsets=[24, 0])),
    "no numbers": _header(lambda header: header["b"].update(data_offsets=[0.0, "x"])),
    "true for one": _header(lambda header: header["b"].update(shape=[True, 3])),
    "one offset": _header(lambda header: header["b"].update(data_offsets=[0])),
    "an overlap": _header(lambda header: header["c"].update(data_offsets=[16, 24], shape=[1])),
    "another shape": _header(lambda header: header["b"].update(shape=[4])),
    "an endless shape": _header(lambda header: header["b"].update(shape=[1 << 62, 1 << 62])),
    "an unknown type": _header(lambda header: header["b"].update(dtype="F128")),
    "no type": _header(lambda header: header["b"].update(dtype={})),
    "a field too many": _header(lambda header: header["b"].update(strides=[1])),
    "one tensor is missing": _header(lambda header: header.pop("c")),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    write(plan({"b": np.arange(3), "c": np.arange(3) + 3}), tmp_path)
    file = tmp_path / STATE_FILE
    file.write_bytes(DAMAGES[kind](file.read_bytes()))
    with pytest.raises(IntegrityError) as damaged:
        read_state(tmp_path)
    assert STATE_FILE in str(damaged.value) or "structure of the state" in str(damaged.value)


LEAVES: dict[str, Any] = {
    "no such tensor": "z",
    "beyond its bytes": {"in": "b", "dtype": "<i8", "shape": [4], "strides": [8], "offset": 0},
    "before its bytes": {"in": "b", "dtype": "<i8", "shape": [3], "strides": [8], "offset": -8},
    "backwards": {"in": "b", "dtype": "<i8", "shape": [3], "strides": [-8], "offset": 0},
    "endless": {"in": "b", "dtype": "<i8", "shape": [1 << 62, 1 << 62], "strides": [0, 0], "offset": 0},
    "too few strides": {"in": "b", "dtype": "<i8", "shape": [3], "strides": [], "offset": 0},
    "no offset": {"in": "b", "dtype": "<i8", "shape": [3], "strides": [8]},
    "another size": {"in": "b", "dtype": "<i4"},
    "objects": {"in": "b", "dtype": "|O8"},
    "a type that is none": {"in": "b", "dtype": ["a"]},
    "with holes": {"in": "b", "was_strided": [1 << 40]},
    "much from little": {
        "in": "b", "dtype": "<i8", "shape": [1 << 40], "strides": [0], "offset": 0, "was_strided": [8],
    },
    "nothing": None,
    "a number": 3,
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAVES)
def test_a_structure_that_does_not_fit_the_tensors_is_damage(tmp_path: Path, kind: str) -> None:
    write(plan({"b": np.arange(3), "c": np.arange(3) + 3}), tmp_path)
    structure = structure_of(tmp_path)
    structure["state"]["b"] = {"$array": LEAVES[kind]}
    (tmp_path / STRUCTURE_FILE).write_text(json.dumps(structure))
    with pytest.raises(IntegrityError, match=r"state\['b'\]"):
        read_state(tmp_path)


@pytest.mark.parametrize("together", [["b", "c"], [["b"]], [["c", "b"]], [["b", "z"]], [["b", 3]], {}, 5])
def test_tensors_that_do_not_lie_together_are_damage(tmp_path: Path, together: Any) -> None:
    write(plan({"b": np.arange(3), "c": np.arange(3) + 3}), tmp_path)
    (tmp_path / STRUCTURE_FILE).write_text(json.dumps({**structure_of(tmp_path), "together": together}))
    with pytest.raises(IntegrityError):
        read_state(tmp_path)


# Into a state that is there.


def a_model(fill: float) -> dict[str, Any]:
    model = OrderedDict(weight=np.full((2, 3), float(fill)), bias=np.full(2, fill, np.float32))
    return {"model": model, "step": int(fill)}


@pytest.mark.parametrize("mmap", [True, False])
def test_into_fills_the_arrays_that_are_there(tmp_path: Path, mmap: bool) -> None:
    target = a_model(0)
    weight, bias = target["model"]["weight"], target["model"]["bias"]
    found = through(tmp_path, a_model(7), into=target, mmap=mmap)
    assert found["model"]["weight"] is weight
    assert found["model"]["bias"] is bias
    assert same(found, a_model(7))
    assert target["step"] == 0


def test_into_reads_what_is_large_and_small_in_any_order(tmp_path: Path) -> None:
    state = [
        np.full(size, number, np.uint8) for number, size in enumerate([3, 1 << 21, 5, 0, 1 << 20, (3 << 20) + 1, 7])
    ]
    for kept in range(len(state)):
        target = [None if number == kept else np.zeros_like(array) for number, array in enumerate(state)]
        assert same(through(tmp_path, state, into=target, mmap=False), state)


def test_into_may_lack_what_is_taken_as_it_is_stored(tmp_path: Path) -> None:
    stored = {**a_model(7), "optimizer": {"state": {0: {"m": np.ones(2)}}, "lr": [0.1, 0.2]}, "rng": np.arange(3)}
    for rest in ({}, {"optimizer": None}, {"optimizer": {"state": {}, "lr": [1.0]}, "rng": None}):
        target = {"model": a_model(0)["model"], **rest}
        found = through(tmp_path, stored, into=target)
        assert same(found, stored)
        assert found["model"]["weight"] is target["model"]["weight"]


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another shape": (lambda model: model.update(weight=np.zeros((3, 2))), r"float64\[2, 3\] in the.*\[3, 2\] here"),
    "another type": (lambda model: model.update(bias=np.zeros(2)), "float32.*float64"),
    "one is missing": (lambda model: model.pop("bias"), r"state\['model'\]\['bias'\] is missing here"),
    "one too many": (lambda model: model.update(more=np.zeros(1)), r"\['more'\] is missing in the checkpoint"),
    "a number": (lambda model: model.update(bias=1.0), r"\['bias'\] is a float here"),
    "read-only": (lambda model: model["bias"].setflags(write=False), "read-only"),
    "a list": (lambda model: model.update(bias=[np.zeros(1)]), r"\['bias'\] is a list here"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    change, words = MISFITS[kind]
    target = a_model(0)
    change(target["model"])
    with pytest.raises(UsageError, match=words) as refused:
        through(tmp_path, a_model(7), into=target)
    assert "nothing was written" in str(refused.value)
    assert all(not array.any() for array in arrays(target))


def test_a_model_is_no_state_to_read_into(tmp_path: Path) -> None:
    for stored in ({"w": np.ones(1)}, {"w": 1.0}):
        with pytest.raises(UsageError, match=r"state\['model'\] is a Model here: give its state_dict\(\)"):
            through(tmp_path, {"model": stored}, into={"model": Model()})


@pytest.mark.parametrize("stored", [math.nan, {1}, b"x", Colour.RED, np.float32(1), "x", [], {}, (), [1.0], deque()])
def test_an_array_gets_no_other_value(tmp_path: Path, stored: Any) -> None:
    with pytest.raises(UsageError, match=r"state\[0\]"):
        through(tmp_path, [stored], into=[np.zeros(1)])
    with pytest.raises(UsageError, match=r"state\[0\]"):
        through(tmp_path, [stored], into=[{"a": [np.zeros(1)]}])


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_copied_elsewhere_does_not_part_what_shares_memory(tmp_path: Path, mmap: bool) -> None:
    base = np.arange(6.0)
    tied = np.arange(6).reshape(2, 3).T
    state = [base[:4], base[1:5], base[2:6], tied, tied.view(), tied.view()]
    found = through(tmp_path, state, into=[None, np.zeros(4), None, None, np.zeros((3, 2), int), None], mmap=mmap)
    assert same(found, state)
    found[0][3] = found[3][0, 1] = 77
    assert (found[2][1], found[5][0, 1]) == (77, 77)


def test_five_misfits_are_named_and_the_others_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state\[4\].*; and 3 more") as refused:
        through(tmp_path, [np.ones(1)] * 8, into=[np.ones(2) for _ in range(8)])
    assert "state[5]" not in str(refused.value)


def test_without_tensors_nothing_has_to_fit(tmp_path: Path) -> None:
    stored = {"history": [1, 2, 3], "best": {"a": 1}, "name": "x"}
    assert through(tmp_path, stored, into={"history": [1], "best": {"b": 2, "c": 3}, "name": [1], "more": 1}) == stored


# Whatever comes.


def _views(base: Any) -> st.SearchStrategy[Any]:
    """Ways to look at a part of some memory."""
    ways: list[Callable[[Any], Any]] = [
        lambda a: a, lambda a: a[::-1], lambda a: a[3:9], lambda a: a[5:12], lambda a: a[12:], lambda a: a[::3],
        lambda a: a.reshape(4, -1).T, lambda a: a.reshape(2, -1)[:, 1:3], lambda a: a[:0], lambda a: a[7],
        lambda a: np.broadcast_to(a[2:3], (3, 2)), lambda a: a.view(np.uint8)[1:5], lambda a: a.view(np.uint8),
        lambda a: np.lib.stride_tricks.sliding_window_view(a, 3)[::2], lambda a: a.view(),
        lambda a: a[2:4].reshape(1, 2, 1),
    ]  # fmt: skip
    return st.sampled_from(ways).map(lambda way: way(base))


def _states() -> st.SearchStrategy[Any]:
    def with_memory(seed: int) -> st.SearchStrategy[Any]:
        numbers = np.random.default_rng(seed)
        bases = [
            np.frombuffer(numbers.bytes(24 * np.dtype(dtype).itemsize), dtype).copy()
            for dtype in ("<f4", ">i8", "<c16", "?", "<u2")
        ]
        text = st.text(st.characters(exclude_categories=()), max_size=5)
        plain = st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), text, st.binary(max_size=9)
        )
        keys = st.one_of(text, st.integers(), st.none(), st.tuples(text, st.integers()), st.binary(max_size=3))
        leaves = st.one_of(plain, st.sampled_from(bases).flatmap(_views))

        def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
            return st.one_of(
                st.lists(parts, max_size=4),
                st.lists(parts, max_size=3).map(tuple),
                st.dictionaries(keys, parts, max_size=4),
                st.dictionaries(text, parts, max_size=3).map(OrderedDict),
                st.lists(parts, max_size=2).map(deque),
                st.sets(plain.filter(lambda value: value == value), max_size=3),
            )

        return st.recursive(leaves, containers, max_leaves=12)

    return st.integers(0, 3).flatmap(with_memory)


def assert_any_state_comes_back(directory: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(state=_states(), mmap=st.booleans())
    def comes_back(state: Any, mmap: bool) -> None:
        found = through(directory, state, mmap=mmap)
        assert same(found, state)
        # Writing to one shows in the same others.
        for number, (was, is_now) in enumerate(zip(arrays(state), arrays(found), strict=True)):
            if was.flags.writeable:
                was[...] = is_now[...] = number
        assert same(found, state)

    comes_back()


@pytest.mark.parametrize("examples", [40, pytest.param(200, marks=pytest.mark.long)])
def test_any_state_comes_back_with_what_it_shares(tmp_path: Path, examples: int) -> None:
    assert_any_state_comes_back(tmp_path, examples)


def _damaged(random_: random.Random, value: Any, depth: int = 0) -> Any:
    """The same JSON, with one of its parts replaced."""
    strange = [
        None,
        -1,
        1 << 70,
        1.5,
        "",
        "a",
        "\ud800",
        [],
        {},
        [[]],
        {"$array": "a"},
        {"$tuple": 3},
        {"$set": [[]]},
        {"in": "a"},
    ]
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        changed = dict(value)
        if random_.random() < 0.15:
            changed[random_.choice(["$array", "$set", "$enum", "$scalar", "offset", "shape", "x"])] = changed.pop(key)
        else:
            changed[key] = _damaged(random_, value[key], depth + 1)
        return changed
    if isinstance(value, list) and value and random_.random() < 0.9:
        place = random_.randrange(len(value))
        return [*value[:place], _damaged(random_, value[place], depth + 1), *value[place + 1 :]]
    if type(value) is int and random_.random() < 0.7:
        return random_.choice([value + 1, value - 1, -value, value * 8, 0, 1 << 40, 1 << 62])
    return random_.choice(strange)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 4))])
def test_no_damage_is_anything_but_an_error_that_says_so(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    base = np.arange(24, dtype=np.float32)
    state = {
        "a": base[:10], "b": base[5:], "t": np.arange(6).reshape(2, 3).T, "s": {(1, 2), "x"}, "c": 1j,
        "n": np.float32(1),
        "u": np.array(["ab"]), "e": Colour.RED, "p": Point(1, 2), "d": deque([1], 3), "w": base.view(np.uint8)[1:7],
        "row": [_BASE[0], _BASE[1]], "counter": Counter({1: 2}), "k": {1: b"x"}, "o": OrderedDict(a=1),
    }  # fmt: skip
    write(plan(state), tmp_path)
    header, structure = header_of(tmp_path), structure_of(tmp_path)
    data = (tmp_path / STATE_FILE).read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    outcomes: Counter[str] = Counter()
    for _ in range(700):
        which = random_.random()
        head, told = header, structure
        if which < 0.3:
            head = _damaged(random_, header)
        elif which < 0.9:
            told = _damaged(random_, structure)
        text = json.dumps(head).encode()
        changed = bytearray(len(text).to_bytes(8, "little") + text + body)
        if which >= 0.9:
            for _ in range(random_.randint(1, 4)):
                changed[random_.randrange(len(changed) if random_.random() < 0.3 else 40)] = random_.randrange(256)
            if random_.random() < 0.3:
                del changed[random_.randrange(len(changed)) :]
        (tmp_path / STATE_FILE).write_bytes(changed)
        (tmp_path / STRUCTURE_FILE).write_text(json.dumps(told))
        try:
            found = read_state(tmp_path, mmap=random_.random() < 0.5)
        except (IntegrityError, UsageError) as error:
            outcomes[type(error).__name__] += 1
            continue
        outcomes["read"] += 1
        for array in arrays(found):
            if array.nbytes < 1 << 20:
                array.tobytes()  # What reaches beyond the file ends the process.
    assert outcomes["IntegrityError"] > 100
    assert outcomes["read"] > 10
