"""torch's tensors as views of memory, and back. Imported only where a state has some."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..errors import UsageError, shorten
from . import safetensors
from .torch_values import decode_value as decode_value
from .torch_values import encode_value as encode_value
from .views import Place, Refused, View, span

_TAGS = {torch_name: tag for tag, (_, torch_name, _) in safetensors.TYPES.items() if hasattr(torch, torch_name)}
#: What its leaves are.
TYPE = torch.Tensor
KIND = "$tensor"
NAMES = {tag: name for name, tag in _TAGS.items()}
#: An element's offset in its storage is a multiple of its size.
ALIGNED = True
#: All types but the quantized ones: (name, bytes of an element).
_DTYPES: dict[torch.dtype, tuple[str, int]] = {
    dtype: (str(dtype).removeprefix("torch."), dtype.itemsize)
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith("torch.q")
}
#: Types of one byte that cannot be copied as such, and one whose copies are not always the same byte.
_AS_BYTES = {name for name, size in _DTYPES.values() if size == 1 and (name not in _TAGS or name == "bool")}
_COMPLEX = {name for dtype, (name, _) in _DTYPES.items() if dtype.is_complex}
_BY_NAME = {name: dtype for dtype, (name, _) in _DTYPES.items()}

#: By the name of a tensor's class: what it is, and the way out.
_SPECIAL = {
    "DTensor": (
        "a DTensor, of which this process has a part",
        "Save full_tensor() or to_local() of it, or use async_ckpt.integrations.dcp",
    ),
    "FakeTensor": ("a FakeTensor, which has no data", "Save the state outside of FakeTensorMode"),
    "UninitializedParameter": ("a parameter that is not initialised", "Run the model once before you save it"),
    "UninitializedBuffer": ("a buffer that is not initialised", "Run the model once before you save it"),
}
_UNWRAP = "Convert it to a plain tensor, take it out, or save with pickle=True"


class _Devices:
    """A number and a name for each device: the host's memory is number 0, and has no name."""

    def __init__(self) -> None:
        self._known: dict[torch.device, tuple[int, str]] = {torch.device("cpu"): (0, "")}

    def __call__(self, device: torch.device) -> tuple[int, str]:
        found = self._known.get(device)
        if found is None:
            found = self._known[device] = (len(self._known), str(device))
        return found


_device = _Devices()


def describe(value: Any, number: int, name: str, leaf: dict[str, Any]) -> View:
    """The memory of a tensor.

    Raises
    ------
    Refused
        The format cannot hold it.
    """
    kind, flags = type(value), _NO_FLAGS
    if kind is not torch.Tensor:
        if kind is not torch.nn.Parameter:
            what, hint = _SPECIAL.get(
                kind.__name__, (f"a {kind.__module__}.{kind.__qualname__}, an unknown kind of tensor", _UNWRAP)
            )
            raise Refused(what, hint)
        flags = {"parameter": True}
    if value.is_nested:
        raise Refused("a nested tensor", "Save its unbind() as a list")
    if value.layout is not torch.strided:
        raise Refused(
            f"a sparse tensor ({value.layout})", "Save its indices and values as tensors of their own, or to_dense()"
        )
    known = _DTYPES.get(value.dtype)
    if known is None:
        raise Refused(
            f"a tensor of {value.dtype}, which is quantized", "Save int_repr() and its scales, or dequantize()"
        )
    device, where = _device(value.device)
    if where == "meta":
        raise Refused(
            "a tensor on the meta device, which has no data", "Materialise it first, for example with to_empty()"
        )
    dtype, itemsize = known
    if value.requires_grad:
        flags = {**flags, "requires_grad": True}
    if value.is_neg() or (dtype in _COMPLEX and value.is_conj()):
        flags = {**flags, "bits": ("c" if value.is_conj() else "") + ("n" if value.is_neg() else "")}
    try:
        start = value.data_ptr()
    except RuntimeError as error:
        raise Refused("a tensor without memory of its own, as inside of torch.func's transforms", _UNWRAP) from error
    contiguous, strides, end = value.is_contiguous(), (), start
    if contiguous:
        end += value.numel() * itemsize
    else:
        strides = value.stride()
        end += (span(value.shape, strides)[1] + 1) * itemsize
    storage = start - value.storage_offset() * itemsize
    if start == 0 and end:
        device = -2 - number  # Its addresses tell nothing: it shares with nobody.
    return View(
        number, device, start, end, name, _SELF, _TAGS.get(dtype, ""), dtype, itemsize, value.shape, strides,
        contiguous, where, storage, flags, leaf,
    )  # fmt: skip


def place(value: Any) -> Place | None:
    """What ``describe`` looks at, in short; None: it may refuse it."""
    kind = type(value)
    if (kind is not torch.Tensor and kind is not torch.nn.Parameter) or value.layout is not torch.strided:
        return None
    try:
        start, shape, strides = value.data_ptr(), value.shape, value.stride()
    except RuntimeError:  # It has no memory, or is nested.
        return None
    size = value.nbytes
    if size and not value.is_contiguous():
        size = (span(shape, strides)[1] + 1) * value.itemsize
    if start == 0 and size:
        return None
    device, storage = value.device, start - value.storage_offset() * value.itemsize
    flags = value.requires_grad, value.is_neg(), value.is_conj()
    return _device(device)[0], start, start + size, storage, (kind, shape, strides, value.dtype, device, flags)


_SELF = sys.modules[__name__]
_NO_FLAGS: dict[str, Any] = {}


def unit(itemsize: int) -> int:
    """What one element has in the unit of strides."""
    return 1


def watched(values: list[Any]) -> list[Any]:
    """Their versions count the writes to them; none, if one of them has no version."""
    for value in values:
        if value.is_inference():
            return []
    return values


def logical(view: View, value: Any) -> Any:
    """A tensor whose elements, in their order, are what the file has."""
    if view.flags:
        value = value.detach().resolve_conj().resolve_neg()
    return value.view(torch.uint8) if view.dtype in _AS_BYTES else value


def zeros(size: int) -> Any:
    return torch.zeros(size, dtype=torch.uint8, device="cpu")


def raw(value: Any, start: int, size: int) -> Any:
    """The bytes of memory around a tensor as a tensor; None: they are not all in its storage."""
    storage = value.untyped_storage()
    offset = start - storage.data_ptr()
    if offset < 0 or offset + size > storage.nbytes():
        return None
    return torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage, offset, (size,), (1,))


# Reading.


def storage_of(buffer: Any, offset: int, size: int) -> Any:
    """A storage on bytes of a writable buffer, which it keeps."""
    if not size:
        return torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage()
    return torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=offset).untyped_storage()


def locations(map_location: Any) -> Callable[[Any, str], Any]:
    """How ``torch.load`` brings a storage to where ``map_location`` says."""
    default = torch.serialization.default_restore_location

    def restore(storage: Any, location: str) -> Any:
        moved = None
        if isinstance(map_location, (str, torch.device)):
            location = str(map_location)
        elif isinstance(map_location, dict):
            location = map_location.get(location, location)
        elif map_location is not None:
            moved = map_location(storage, location)
        try:
            return default(storage, location) if moved is None else moved
        except RuntimeError as error:
            raise UsageError(
                f"The state has tensors of the device {location}, and this process cannot use it: {error}",
                hint="Load it with map_location='cpu', or another device that there is",
            ) from error

    if (
        map_location is not None
        and not isinstance(map_location, (str, torch.device, dict))
        and not callable(map_location)
    ):
        raise UsageError(
            f"map_location is {type(map_location).__name__}",
            hint="Give a device, its name, a dict of names, or a function",
        )
    return restore


def dtype_named(name: Any) -> tuple[torch.dtype, int]:
    """A type, and bytes of an element."""
    dtype = _BY_NAME.get(name)
    if dtype is None:
        raise UsageError(
            f"The state has tensors of the type {shorten(str(name), 80)}, which torch {torch.__version__} lacks",
            hint="Upgrade torch",
        )
    return dtype, _DTYPES[dtype][1]


def build(storage: Any, dtype: torch.dtype, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Any:
    """A view of a storage; ``offset`` in bytes. It must lie within: torch would enlarge the storage."""
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage, offset // dtype.itemsize, tuple(shape), tuple(strides))


def relaid(tensor: Any, strides: Sequence[int]) -> Any:
    """The same elements, in memory as they were."""
    target = torch.empty_strided(tuple(tensor.shape), tuple(strides), dtype=tensor.dtype, device=tensor.device)
    assign(target, tensor)
    return target


def assign(target: Any, source: Any) -> None:
    with torch.no_grad():
        if target.itemsize == 1:  # Not all types of one byte can be copied as such.
            target, source = target.view(torch.uint8), source.view(torch.uint8)
        target.copy_(source)


def alias(tensor: Any) -> Any:
    """Another tensor with the same memory."""
    return tensor.detach()


def with_bits(tensor: Any, leaf: Mapping[str, Any]) -> Any:
    """As it was seen: conjugated or negated."""
    bits = leaf.get("bits", "")
    if bits and not (tensor.is_complex() or tensor.is_floating_point()):
        raise ValueError("only numbers with a fraction are conjugated or negated")
    if "c" in bits:
        tensor = tensor.conj()
    return torch._neg_view(tensor) if "n" in bits else tensor


def finished(tensor: Any, leaf: Mapping[str, Any]) -> Any:
    """With what else the leaf says of it."""
    tensor = with_bits(tensor, leaf)
    requires_grad = leaf.get("requires_grad") is True
    if requires_grad and not (tensor.is_complex() or tensor.is_floating_point()):
        raise ValueError("only numbers with a fraction have gradients")
    if leaf.get("parameter"):
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_() if requires_grad else tensor


def misfit(into: Any, dtype: torch.dtype, shape: Sequence[int]) -> str:
    """Why a stored tensor cannot be copied into ``into``; empty if it can."""
    if tuple(into.shape) != tuple(shape) or into.dtype != dtype:
        return f"is {_described(dtype, shape)} in the checkpoint, and {_described(into.dtype, into.shape)} here"
    if type(into) not in (torch.Tensor, torch.nn.Parameter) or into.layout is not torch.strided or into.is_nested:
        return f"is a {type(into).__module__}.{type(into).__qualname__} here, which is no plain tensor"
    if into.device.type == "meta":
        return "is on the meta device here, which has no memory"
    if into.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode here, and must not be written to"
    if any(stride == 0 and size > 1 for stride, size in zip(into.stride(), into.shape, strict=True)):
        return "is expanded here: its elements share memory"
    return ""


def _described(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
