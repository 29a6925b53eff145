"""What was found out of one state is used again for the next one, if that is of the same kind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_ckpt.state import plan as planning
from async_ckpt.state.plan import Arrangements, plan
from async_ckpt.state.read import read_state
from harness.files.state_files import same, write

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    return torch


def _tied(tensor: Any) -> dict[str, Any]:
    return {"w": tensor, "again": tensor.view(-1)[:], "part": tensor[1:3], "columns": tensor[:, 1]}


def _rows(tensor: Any) -> dict[str, Any]:
    return {"b": tensor[2:], "a": tensor[:2], "t": tensor.t().contiguous().t(), "apart": tensor.clone()}


#: Each is another state than the one before it, in one respect alone.
ONE_AFTER_THE_OTHER: dict[str, Callable[[Any], Any]] = {
    "as before": lambda torch: {"w": torch.rand(4, 6), "n": 1},
    "other values": lambda torch: {"w": torch.rand(4, 6), "n": 2},
    "another shape": lambda torch: {"w": torch.rand(6, 4), "n": 2},
    "another type": lambda torch: {"w": torch.rand(6, 4).to(torch.bfloat16), "n": 2},
    "other strides": lambda torch: {"w": torch.rand(4, 6).t().to(torch.bfloat16), "n": 2},
    "a parameter": lambda torch: {"w": torch.nn.Parameter(torch.rand(4, 6).t().to(torch.bfloat16)), "n": 2},
    "without a gradient": lambda torch: {
        "w": torch.nn.Parameter(torch.rand(4, 6).t().to(torch.bfloat16), requires_grad=False), "n": 2
    },
    "another name": lambda torch: {"v": torch.rand(6, 4)},
    "another place": lambda torch: [torch.rand(6, 4)],
    "of numpy": lambda torch: [np.random.rand(6, 4)],
    "two": lambda torch: [torch.rand(4, 6), torch.rand(4, 6)],
    "one twice": lambda torch: [torch.ones(4, 6)] * 2,
    "two in one storage": lambda torch: list(torch.rand(2, 4, 6)),
    "in the other order": lambda torch: list(torch.rand(2, 4, 6))[::-1],
    "tied": lambda torch: _tied(torch.rand(4, 6)),
    "rows of one": lambda torch: _rows(torch.rand(4, 6)),
    "negated": lambda torch: [torch._neg_view(torch.rand(3)), torch.rand(3)],
    "not negated": lambda torch: [torch.rand(3), torch.rand(3)],
    "conjugated": lambda torch: [torch.rand(3, dtype=torch.complex64).conj()],
    "not conjugated": lambda torch: [torch.rand(3, dtype=torch.complex64)],
    "none": lambda torch: {"n": 1},
    "empty": lambda torch: {"w": torch.rand(0, 3), "n": 1},
    "pickled": lambda torch: {"w": torch.rand(3), "n": torch.rand(2, 2).to_sparse()},
}  # fmt: skip


@pytest.mark.parametrize("apart", [1, 2, 5])
def test_what_was_found_out_of_one_state_is_used_for_the_next_only_if_it_is_the_same(
    torch: Any, tmp_path: Path, apart: int
) -> None:
    known = Arrangements()
    kept = []  # Else the next state lies where this one lay.
    for number, (name, make) in enumerate([*ONE_AFTER_THE_OTHER.items()] * 2):
        state = make(torch)
        if number % apart == 0:
            kept.append(state)
        for _ in range(2):
            planned, alone = plan(state, pickle=True, known=known), plan(state, pickle=True)
            assert planned.header == alone.header, name
            assert planned.structure == alone.structure, name
            assert [piece[:3] for piece in planned.pieces] == [piece[:3] for piece in alone.pieces], name
            assert [piece.address for piece in planned.pieces] == [piece.address for piece in alone.pieces], name
            write(planned, tmp_path)
            read = read_state(tmp_path, pickle=True)
            if name == "pickled":
                state, read = ({**one, "n": one["n"].to_dense()} for one in (state, read))
            assert same(read, state), name


def test_a_state_of_the_same_kind_is_arranged_once(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some of its tensors are new each time, as the states of random numbers are."""
    made = []
    real = planning.Arrangement
    monkeypatch.setattr(planning, "Arrangement", lambda views: made.append(len(views)) or real(views))
    known, flat = Arrangements(), torch.rand(100)
    for number in range(6):
        plan({"flat": [flat[:50], flat[50:]], "random": torch.get_rng_state(), "step": number}, known=known)
        plan({"other": torch.rand(5)}, known=known)
    assert made == [3, 1]


def test_what_is_kept_of_a_state_keeps_none_of_its_tensors(torch: Any) -> None:
    known, tensor = Arrangements(), torch.rand(8, 8)
    shared = tensor[2:4]
    gone = [weakref.ref(tensor), weakref.ref(shared)]
    plan({"w": tensor, "shared": shared}, known=known)
    del tensor, shared
    gc.collect()
    assert [one() for one in gone] == [None, None]
