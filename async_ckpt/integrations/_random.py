"""The random states of this process: of Python, and of numpy and torch where the program uses them; as JSON."""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import Mapping
from typing import Any


def states() -> dict[str, Any]:
    """Of torch, those of the CPU and, once it is used, of this process's GPU."""
    found: dict[str, Any] = {"python": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        of_numpy = numpy.random.get_state(legacy=False)
        of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
        found["numpy"] = of_numpy
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = _text(torch.get_rng_state())
        if torch.cuda.is_initialized():
            found["cuda"] = _text(torch.cuda.get_rng_state())
    return found


def restore(saved: Mapping[str, Any]) -> None:
    """Make these, as ``states`` returned them, the states of this process."""
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in saved:
        import numpy

        numpy.random.set_state(saved["numpy"])
    if "torch" in saved:
        import torch

        torch.set_rng_state(_tensor(torch, saved["torch"]))
        if "cuda" in saved and torch.cuda.is_available():
            torch.cuda.set_rng_state(_tensor(torch, saved["cuda"]))


def _text(state: Any) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(torch: Any, text: str) -> Any:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
