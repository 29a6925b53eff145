"""torch's types, devices and sizes as JSON, and back. Imported only where a state has some."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError, shorten


def encode_value(value: Any) -> Any:
    """JSON for torch's types, devices and sizes; None: it is none of them."""
    if isinstance(value, torch.Size):
        return {"$torch.Size": list(value)}
    if isinstance(value, torch.device):
        return {"$torch.device": str(value)}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"$torch": str(value).removeprefix("torch.")}
    return None


def decode_value(mark: dict[str, Any]) -> Any:
    if "$torch.Size" in mark:
        return torch.Size(mark["$torch.Size"])
    if "$torch.device" in mark:
        try:
            return torch.device(mark["$torch.device"])
        except RuntimeError as error:
            raise ValueError(f"no device: {shorten(str(error), 100)}") from error
    value = getattr(torch, mark["$torch"], None)
    if not isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        raise UsageError(
            f"The state has torch.{mark['$torch']}, which torch {torch.__version__} lacks", hint="Upgrade torch"
        )
    return value
