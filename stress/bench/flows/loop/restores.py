"""Ways to come back from a checkpoint to a training that can take a step."""

import os
import time

import torch

from . import model
from .savers import InStore


class Restores:
    """Saves one checkpoint in each way; a restore starts with a model and an optimizer that exist and hold zeros."""

    def __init__(self, training, savers, work):
        self._training = training
        self._expected = model.digest(training.state())
        self._ways = {}
        saver = next((each for each in savers.values() if isinstance(each, InStore)), None)
        if saver:
            saver.save(training.state())
            saver.drain()
            package = saver.name.removeprefix("torch.save + ")
            load = "load()" if package == "save()" else f"{package}'s load()"
            self._ways[f"{load}, torch.load"] = lambda: training.load(saver.restored())
            self._ways[f"{load}, torch.load(mmap=True)"] = lambda: training.load(saver.restored(mmap=True))
        if "sync" in savers:
            state = savers["sync"]
            state.save(training.state())
            state.drain()
            self._ways["load_state(into=…)"] = lambda: self._into(state)
            self._ways["load_state()"] = lambda: training.load(state.restored())
        if "torch.save" in savers:
            plain = savers["torch.save"]
            plain.save(training.state())
            self._ways["torch.load of a local file"] = lambda: training.load(torch.load(plain.path))
            mapped = "torch.load(mmap=True) of a local file"
            self._ways[mapped] = lambda: training.load(torch.load(plain.path, mmap=True))
            self._add_safetensors(os.path.join(work, "model.safetensors"))

    def ways(self):
        return list(self._ways)

    def restore(self, way, check):
        """Seconds for the load, and until the end of the first step. ``check``: only whether all bits are there."""
        self._training.forget()
        self._training.synchronize()
        began = time.perf_counter()
        self._ways[way]()
        self._training.synchronize()
        seconds = time.perf_counter() - began
        if check:
            return {"same": model.digest(self._training.state()) == self._expected}
        self._training.step()
        self._training.synchronize()
        return {"load": seconds, "first step": time.perf_counter() - began}

    def _into(self, saver):
        """Tensors are filled in place; what is no tensor is given back."""
        self._training.load_values(saver.restored(into=self._training.state()))

    def _add_safetensors(self, path):
        """The tensors alone, flat: what the format takes at least."""
        try:
            from safetensors.torch import load_file, save_file
        except ImportError:
            return
        flat, seen = {}, set()
        for names, value in model.leaves(self._training.state()):
            if isinstance(value, torch.Tensor) and value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                flat["/".join(names)] = value
        save_file(flat, path)
        steps = self._training.steps

        def load():
            loaded = load_file(path, device=self._training.device)
            with torch.no_grad():
                for names, value in model.leaves(self._training.state()):
                    if "/".join(names) in loaded:
                        value.copy_(loaded["/".join(names)])
            self._training.steps = steps

        self._ways["safetensors' load_file of a local file"] = load
