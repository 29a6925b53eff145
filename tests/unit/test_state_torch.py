"""States of torch: tensors of every kind come back as they were, and those that no file holds are named."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_ckpt.errors import UsageError
from async_ckpt.state.plan import plan
from async_ckpt.state.read import STATE_FILE, read_state
from harness.files.state_files import arrays, same, through, write
from harness.flow_runs.environments import with_our_modules

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    torch.manual_seed(0)
    return torch


Make = Callable[[Any], Any]

TENSORS: dict[str, Make] = {
    "no dimensions": lambda torch: torch.tensor(3.5),
    "no elements": lambda torch: [torch.empty(0, 3), torch.empty(3, 0, dtype=torch.int8), torch.empty(0)[::2]],
    "transposed": lambda torch: torch.randn(3, 5).t(),
    "channels last": lambda torch: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda torch: torch.randn(2, 3, 4).permute(1, 2, 0),
    "with gaps": lambda torch: [torch.randn(9)[::2], torch.randn(4, 5)[:, 1:3], torch.randn(4, 5).t()[1:3]],
    "expanded": lambda torch: [torch.ones(1).expand(5, 6), torch.arange(3).expand(4, 3), torch.ones(3, 1).expand(3, 9)],
    "windows": lambda torch: torch.arange(10).unfold(0, 4, 1),
    "strange strides": lambda torch: torch.arange(100.0).as_strided((3, 2, 2), (5, 1, 1), 7),
    "conjugated": lambda torch: [_complex(torch).conj(), _complex(torch).view(2, 2).mH],
    "negated": lambda torch: _complex(torch).conj().imag,
    "conjugated, with what it is of": lambda torch: (
        lambda z: [z, z.conj(), z.real, z.imag, z.conj().imag]
    )(_complex(torch)),
    "bits": lambda torch: torch.tensor([0x7F800001, -0x3FFEDD, -(1 << 31)], dtype=torch.int32).view(torch.float32),
    "booleans that are none": lambda torch: torch.tensor([0, 1, 2, 255], dtype=torch.uint8).view(torch.bool),
    "a parameter": lambda torch: [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, 2).t(), False)],
    "a gradient wanted": lambda torch: torch.ones(3, requires_grad=True),
    "a result": lambda torch: [(torch.ones(3, requires_grad=True) * 2)],
    "a buffer": lambda torch: torch.nn.Buffer(torch.ones(3)),
    "of numpy": lambda torch: [torch.from_numpy(np.arange(3)), np.arange(3)],
    "made in inference": lambda torch: _in_inference(torch),
}  # fmt: skip


def _complex(torch: Any) -> Any:
    return torch.randn(4, dtype=torch.complex64)


def _in_inference(torch: Any) -> Any:
    with torch.inference_mode():
        return torch.zeros(3)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, torch: Any, kind: str, mmap: bool) -> None:
    state = TENSORS[kind](torch)
    assert same(through(tmp_path, state, mmap=mmap), state)


def test_all_types_come_back(tmp_path: Path, torch: Any) -> None:
    types = {
        each for each in vars(torch).values() if isinstance(each, torch.dtype) and not str(each).startswith("torch.q")
    }
    assert len(types) > 30
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")
        state = {str(each): torch.arange(16 * 6, dtype=torch.uint8).view(each)[:6] for each in types}
        strided = {str(each): torch.arange(16 * 6, dtype=torch.uint8).view(each)[:6].view(2, 3).t() for each in types}
        for made in (state, strided):
            found = through(tmp_path, made)
            assert same(found, made)
            target = {name: tensor.clone() for name, tensor in (("torch.bfloat16", state["torch.bfloat16"]),)}
            through(tmp_path, {"torch.bfloat16": made["torch.bfloat16"].contiguous().view(-1)}, into=target)
            assert same(target["torch.bfloat16"], made["torch.bfloat16"].contiguous().view(-1))


def test_strides_come_back_where_memory_is_dense(tmp_path: Path, torch: Any) -> None:
    state = [TENSORS[kind](torch) for kind in ("transposed", "channels last", "permuted")]
    state += [torch.randn(2, 1, 3).transpose(0, 2), torch.ones(1).expand(5, 6)]
    for was, found in zip(state, through(tmp_path, state), strict=True):
        assert found.stride() == was.stride()
    assert plan(torch.ones(1).expand(1 << 20, 1 << 10)).size < 1024


def test_values_of_torch_come_back(tmp_path: Path, torch: Any) -> None:
    state = [
        torch.float32,
        torch.device("cuda", 1),
        torch.Size([1, 2]),
        torch.strided,
        torch.channels_last,
        {torch.int8: 1},
    ]
    assert same(through(tmp_path, state), state)


def a_training(torch: Any) -> tuple[Any, Any, Any, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.LSTM(4, 4))
    model.append(torch.nn.Linear(4, 4))
    model[3].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5], gamma=0.5)
    return model, optimizer, scheduler, torch.amp.GradScaler("cpu")


def train(torch: Any, model: Any, optimizer: Any, scheduler: Any, scaler: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        out, _ = model[2](model[1](model[0](torch.randn(5, 4))))
        loss = torch.nn.functional.dropout(model[3](out), 0.3).square().mean() + random.random() * np.random.rand()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("mmap", "into"), [(True, False), (False, True)])
def test_a_training_goes_on_float_for_float(tmp_path: Path, torch: Any, mmap: bool, into: bool) -> None:
    parts = model, optimizer, scheduler, scaler = a_training(torch)
    train(torch, *parts, 4)
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(), "torch": torch.get_rng_state(), "numpy": np.random.get_state(),
        "python": random.getstate(), "epoch": 3,
    }  # fmt: skip
    write(plan(state), tmp_path)
    assert same(read_state(tmp_path, mmap=mmap), state)
    wanted = train(torch, *parts, 5)
    others = model, optimizer, scheduler, scaler = a_training(torch)
    target = {"model": model.state_dict(), "optimizer": optimizer.state_dict()} if into else None
    found = read_state(tmp_path, mmap=mmap, into=target)
    assert found["model"]._metadata == state["model"]._metadata
    if target is None:
        model.load_state_dict(found["model"])
    else:
        assert found["model"]["0.bias"] is target["model"]["0.bias"]
    optimizer.load_state_dict(found["optimizer"])
    scheduler.load_state_dict(found["scheduler"])
    scaler.load_state_dict(found["scaler"])
    torch.set_rng_state(found["torch"])
    np.random.set_state(found["numpy"])
    random.setstate(found["python"])
    assert train(torch, *others, 5) == wanted


SCHEDULERS: dict[str, tuple[Any, ...]] = {
    "LambdaLR": (lambda epoch: 0.9,), "MultiplicativeLR": (lambda epoch: 0.9,), "StepLR": (2,),
    "MultiStepLR": ([1, 3],), "ExponentialLR": (0.9,), "CosineAnnealingLR": (5,), "CyclicLR": (0.1, 0.2),
    "CosineAnnealingWarmRestarts": (3,), "OneCycleLR": (0.1, 10), "ConstantLR": (), "LinearLR": (), "PolynomialLR": (),
}  # fmt: skip


def test_every_optimizer_and_scheduler_of_torch_has_a_state_that_is_kept(tmp_path: Path, torch: Any) -> None:
    base = torch.optim.Optimizer
    kinds = [kind for kind in vars(torch.optim).values() if isinstance(kind, type) and kind is not base]
    assert len(kinds) > 10
    for kind in kinds:
        weight = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = kind([weight], lr=0.01)
        for _ in range(2):
            weight.grad = torch.ones(4, 4).to_sparse() if kind.__name__ == "SparseAdam" else torch.ones(4, 4)
            optimizer.step(lambda: torch.ones(()))
        assert same(through(tmp_path, optimizer.state_dict()), optimizer.state_dict()), kind
    for name, arguments in SCHEDULERS.items():
        scheduler = getattr(torch.optim.lr_scheduler, name)(torch.optim.SGD([weight], 0.1, momentum=0.9), *arguments)
        assert same(through(tmp_path, scheduler.state_dict()), scheduler.state_dict()), name


def test_what_is_tied_stays_tied(tmp_path: Path, torch: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(1 << 14))
    state = {"parameters": [weight, weight], "views": [weight.detach(), weight.data], "part": weight.detach()[3:5]}
    assert plan(state).size < weight.nbytes + 4096
    found = through(tmp_path, state)
    assert found["parameters"][0] is found["parameters"][1]
    assert isinstance(found["parameters"][0], torch.nn.Parameter)
    found["part"][0] = 5
    assert [tensor[3].item() for tensor in found["parameters"] + found["views"]] == [5, 5, 5, 5]
    assert [tensor.requires_grad for tensor in found["views"]] == [False, False]


def test_views_of_one_storage_are_views_of_one_storage(tmp_path: Path, torch: Any) -> None:
    flat = torch.arange(24.0)
    state = {"a": flat[:6].view(2, 3), "b": flat[6:24], "other": [flat[8:10].clone()]}
    found = through(tmp_path, state)
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    assert same(found, state)
    assert plan(flat[3:5].detach()).size < 512


def test_memory_that_torch_and_numpy_share_is_shared_again(tmp_path: Path, torch: Any) -> None:
    array = np.zeros(10)
    state = {"array": array, "tensor": torch.from_numpy(array)[2:], "bytes": torch.frombuffer(array, dtype=torch.uint8)}
    assert len(plan(state).pieces) == 1
    for mmap in (True, False):
        found = through(tmp_path, state, mmap=mmap)
        found["array"][2] = 1.0
        assert found["tensor"][0] == 1
        assert found["bytes"][16:24].view(torch.float64).item() == 1


def test_a_write_to_any_tensor_of_a_piece_shows_in_a_version(torch: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(8))
    state = {"w": weight.detach(), "data": weight.data, "part": weight.detach()[2:], "free": torch.ones(2)}
    pieces = {piece.name: piece for piece in plan(state).pieces}

    def versions(name: str) -> list[int]:
        return [tensor._version for tensor in pieces[name].watched]

    with torch.no_grad():
        for written in (weight, state["data"], state["part"]):
            before, free = versions("w"), versions("free")
            written.add_(1)
            assert versions("w") != before
            assert versions("free") == free
    array = np.zeros(3)
    for unnoticed in ([_in_inference(torch)], [array, torch.from_numpy(array)], [torch.from_numpy(array)[1:], array]):
        assert plan(unnoticed).pieces[0].watched == []


REFUSED: dict[str, tuple[Make, str]] = {
    "meta": (lambda torch: torch.ones(3, device="meta"), "meta device.*to_empty"),
    "sparse": (lambda torch: torch.ones(3, 3).to_sparse(), "sparse tensor.*to_dense"),
    "sparse rows": (lambda torch: torch.ones(3, 3).to_sparse_csr(), "sparse tensor.*to_dense"),
    "sparse columns": (lambda torch: torch.ones(3, 3).to_sparse_csc(), "sparse tensor.*to_dense"),
    "sparse blocks": (lambda torch: torch.ones(4, 4).to_sparse_bsr((2, 2)), "sparse tensor.*to_dense"),
    "quantized": (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized.*int_repr"),
    "nested": (lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensor.*unbind"),
    "jagged": (
        lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "NestedTensor|nested",
    ),
    "a DTensor": (lambda torch: _dtensor(torch), r"DTensor.*full_tensor\(\)"),
    "fake": (lambda torch: _fake(torch), "FakeTensor.*outside"),
    "not initialised": (lambda torch: torch.nn.LazyLinear(3).weight, "not initialised.*Run the model"),
    "an unknown kind": (lambda torch: torch.ones(3).as_subclass(_mine(torch)), "Mine.*pickle=True"),
    "a generator": (lambda torch: torch.Generator(), "torch._C.Generator"),
    "a module": (lambda torch: torch.nn.Linear(1, 1), "Linear"),
    "in a set": (lambda torch: {torch.ones(3)}, "in a set or a key"),
}  # fmt: skip


def _mine(torch: Any) -> Any:
    return type("Mine", (torch.Tensor,), {})


def _dtensor(torch: Any) -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Replicate()])
    finally:
        dist.destroy_process_group()


def _fake(torch: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_file_holds_is_named_with_the_way_out(torch: Any, kind: str) -> None:
    make, words = REFUSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = make(torch)
    with pytest.raises(UsageError, match=rf"(?s)state\['a'\]\[0\].*({words})"):
        plan({"a": [tensor]})


def test_inside_of_a_transform_there_is_no_memory(torch: Any) -> None:
    def refuse(tensor: Any) -> Any:
        with pytest.raises(UsageError, match=r"state\[0\].*(without memory|kind of tensor)"):
            plan([tensor])
        return tensor

    torch.func.vmap(refuse)(torch.ones(3, 2))


def test_pickle_takes_what_no_file_holds(tmp_path: Path, torch: Any) -> None:
    state = {"plain": torch.ones(2), "sparse": torch.eye(3).to_sparse()}
    found = through(tmp_path, state, pickle=True)
    assert torch.equal(found["sparse"].to_dense(), torch.eye(3))
    assert same(found["plain"], state["plain"])


# Where tensors come to be.


def test_map_location_is_that_of_torch_load(tmp_path: Path, torch: Any) -> None:
    state = {"a": torch.arange(3), "view": torch.arange(6).view(2, 3)[1:], "n": np.arange(2)}
    seen = []

    def keep(storage: Any, location: str) -> Any:
        seen.append((storage.nbytes(), location))
        return storage

    for location in (None, "cpu", torch.device("cpu"), {"cuda:0": "cpu"}, keep, lambda storage, location: None):
        assert same(through(tmp_path, state, map_location=location), state)
    assert sorted(seen) == [(24, "cpu"), (24, "cpu")]
    on_meta = through(tmp_path, state, map_location="meta")
    assert (on_meta["a"].device.type, on_meta["a"].shape) == ("meta", (3,))
    assert same(on_meta["n"], state["n"])
    with pytest.raises(UsageError, match="map_location is int"):
        through(tmp_path, state, map_location=3)


def test_a_device_that_is_not_there_is_named(tmp_path: Path, torch: Any) -> None:
    if torch.cuda.is_available():
        pytest.fail("this is for machines without CUDA")
    write(plan({"a": torch.ones(3)}), tmp_path)
    file = tmp_path / "state.json"
    file.write_text(file.read_text().replace('{"$tensor":"a"}', '{"$tensor":{"in":"a","device":"cuda:0"}}'))
    with pytest.raises(UsageError, match=r"cuda:0.*map_location='cpu'"):
        read_state(tmp_path)
    with pytest.raises(UsageError, match=r"cuda:3.*map_location"):
        read_state(tmp_path, map_location="cuda:3")
    for location in ("cpu", {"cuda:0": "cpu"}):
        assert same(read_state(tmp_path, map_location=location)["a"], torch.ones(3))
    target = torch.zeros(3)
    assert read_state(tmp_path, into={"a": target})["a"] is target
    assert same(target, torch.ones(3))


MISFITS: dict[str, tuple[Make, str]] = {
    "another type": (lambda torch: torch.zeros(3, dtype=torch.float64), r"float32\[3\] in .*float64\[3\] here"),
    "meta": (lambda torch: torch.zeros(3, device="meta"), "meta device"),
    "expanded": (lambda torch: torch.zeros(1).expand(3), "expanded"),
    "sparse": (lambda torch: torch.zeros(3).to_sparse(), "no plain tensor"),
    "made in inference": (lambda torch: _in_inference(torch), "inference mode"),
    "an array": (lambda torch: np.zeros(3, np.float32), "is a ndarray here"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path: Path, torch: Any, kind: str) -> None:
    make, words = MISFITS[kind]
    target = {"first": torch.zeros(2), "a": make(torch)}
    with pytest.raises(UsageError, match=rf"state\['a'\].*{words}"):
        through(tmp_path, {"first": torch.ones(2), "a": torch.ones(3)}, into=target)
    assert not target["first"].any()


def test_defaults_of_torch_change_nothing(tmp_path: Path, torch: Any) -> None:
    base = torch.arange(9, dtype=torch.uint8)
    state = {
        "a": torch.ones(3),
        "none": torch.empty(0),
        "t": torch.ones(2, 3).t(),
        "odd": [base[:5], base[3:]],
        "b": base[:6].view(torch.int16),
    }
    wanted = plan(state)
    for scope in (torch.device("meta"), torch.inference_mode(), torch.no_grad()):
        with scope:
            assert plan(state).header == wanted.header
            write(plan(state), tmp_path)
            for mmap in (True, False):
                assert same(read_state(tmp_path, mmap=mmap), state)
            parameter = through(tmp_path, torch.nn.Parameter(torch.ones(2, device="cpu")))
            assert parameter.requires_grad


def test_into_takes_what_was_strided_conjugated_or_shared(tmp_path: Path, torch: Any) -> None:
    state = {
        kind: TENSORS[kind](torch)
        for kind in TENSORS
        if kind not in ("expanded", "windows", "strange strides", "of numpy")
    }
    target = {
        kind: [tensor.detach().clone() for tensor in arrays(value)]
        if isinstance(value, list)
        else value.detach().clone()
        for kind, value in state.items()
    }
    for tensor in arrays(target):
        tensor.zero_()
    found = through(tmp_path, state, into=target)
    for was, now, given in zip(arrays(state), arrays(found), arrays(target), strict=True):
        assert now is given
        assert same(now, was.detach())


def test_a_leaf_that_wants_a_gradient_is_written_to(tmp_path: Path, torch: Any) -> None:
    target = torch.zeros(3, requires_grad=True)
    through(tmp_path, [torch.ones(3)], into=[target])
    assert target.tolist() == [1, 1, 1]
    assert target.grad_fn is None


def test_any_views_of_a_storage_come_back_with_what_they_share(tmp_path: Path, torch: Any) -> None:
    random_ = random.Random(1)
    for _ in range(100):
        bases = [
            torch.arange(40, dtype=torch.uint8),
            torch.randn(24),
            torch.randn(12, dtype=torch.complex64),
            torch.arange(20),
        ]
        ways: list[Callable[[Any], Any]] = [
            lambda a: a, lambda a: a[2:7], lambda a: a[5:11], lambda a: a[::3], lambda a: a.view(4, -1).t(),
            lambda a: a.view(2, -1)[:, 1:3], lambda a: a[3:4].expand(2, 5), lambda a: a.unfold(0, 3, 2),
            lambda a: a[8:9], lambda a: a[:0],
            lambda a: a.view(torch.uint8)[8:24], lambda a: a.view(torch.uint8)[:8].view(torch.int16),
            lambda a: a.conj(), lambda a: a.conj().imag if a.is_complex() else a[1:], lambda a: a.detach(),
            lambda a: torch.nn.Parameter(a.real * 1.0),
        ]  # fmt: skip
        state = [
            random_.choice(ways)(random_.choice(bases[: random_.randint(1, 4)])) for _ in range(random_.randint(1, 6))
        ]
        found = through(tmp_path, state, mmap=random_.random() < 0.5)
        assert same(found, state)
        for was, is_now in zip(state, found, strict=True):
            assert isinstance(is_now, type(was))
            if 0 not in was.stride():
                with torch.no_grad():
                    for each in (was, is_now):
                        each.copy_(torch.ones(each.shape, dtype=each.dtype))
        assert same(found, state)


# Without one of the two.


def test_torch_without_numpy_and_numpy_without_torch(tmp_path: Path) -> None:
    code = """
import sys
without, directory = sys.argv[1:]
sys.modules[without] = None
from async_ckpt.state.plan import plan
from async_ckpt.state.read import read_state
if without == "torch":
    import numpy as np
    state = {"a": np.arange(3), "n": 1}
else:
    import torch
    state = {"a": torch.arange(3), "n": 1}
planned = plan(state)
data = bytearray(planned.size)
data[:len(planned.header)] = planned.header
for piece in planned.pieces:
    data[piece.offset:piece.offset + piece.nbytes] = b"".join(int(x).to_bytes(8, "little") for x in piece.source)
open(directory + "/state.safetensors", "wb").write(data)
open(directory + "/state.json", "wb").write(planned.structure)
print(read_state(directory)["a"].tolist(), read_state(directory, mmap=False)["a"].tolist())
"""
    for without in ("torch", "numpy"):
        done = subprocess.run(
            [sys.executable, "-c", code, without, str(tmp_path)], env=with_our_modules(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.stdout.startswith("[0, 1, 2] [0, 1, 2]"), done.stderr


def test_a_model_of_torch_load_is_no_larger_and_no_other(tmp_path: Path, torch: Any) -> None:
    """The same state through torch.save: nothing that torch keeps is lost here."""
    model, optimizer, scheduler, _ = a_training(torch)
    train(torch, model, optimizer, scheduler, torch.amp.GradScaler("cpu"), 2)
    state = OrderedDict(model=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    file = io.BytesIO()
    torch.save(state, file)
    size = len(file.getvalue())
    file.seek(0)
    assert same(through(tmp_path, state), torch.load(file, weights_only=False))
    assert (tmp_path / STATE_FILE).stat().st_size < size
