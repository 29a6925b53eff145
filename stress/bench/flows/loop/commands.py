"""What a task that trains can be told: save in one of the ways, train while something saves, load."""

import contextlib
import importlib.metadata
import shutil
import statistics
import tempfile
import time

import torch
from commands import is_ours
from metaflow import current

from . import memory, model, restores, savers


class Commands:
    def __init__(self):
        self._training = self._savers = self._restores = None
        self._bare_update = 0.0
        self._work = tempfile.mkdtemp()

    def prepare(self, parameters, tokens, device, threads, only):
        """Make the model, and everything that can save it. ``only``: of these names."""
        torch.set_num_threads(threads or torch.get_num_threads())
        self._training = model.Training(parameters, tokens, device)
        makers = savers.ours if is_ours() else savers.theirs
        self._bare_update = self._time_update()
        self._savers, missing = makers(self._training, self._work, only)
        state = self._training.state()
        return {
            "parameters": sum(each.numel() for each in self._training.model.parameters()),
            "bytes": model.unique_bytes(state), "tensors": len(model.tensors(state)),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "missing": missing,
            "device": torch.cuda.get_device_name() if device == "cuda" else "",
            "savers": {key: [saver.name, saver.kept_in] for key, saver in self._savers.items()},
            "versions": {name: _version(name) for name in ("torch_checkpointing", "nvidia-resiliency-ext")},
        }  # fmt: skip

    # -- one save --------------------------------------------------------------------------------------------------

    def save(self, saver):
        """One checkpoint between two steps, and nothing else under way. Seconds: in the call, in the forward and
        backward pass beside what it has begun, in the wait before the tensors change, and until it is where it is kept.
        """
        chosen = self._savers[saver]
        state = self._training.state()
        self._training.synchronize()
        began = time.perf_counter()
        chosen.save(state)
        call = time.perf_counter() - began
        self._training.forward_backward()
        self._training.synchronize()
        before = time.perf_counter()
        chosen.wait()
        wait = time.perf_counter() - before
        self._training.update()
        if self._bare_update:
            # The host need not wait: the device does, and its update is as much later.
            self._training.synchronize()
            wait = max(time.perf_counter() - before - self._bare_update, wait)
        chosen.drain()
        done = time.perf_counter() - began
        chosen.discard()
        return {"call": call, "pass": before - began - call, "wait": wait, "done": done}

    def _time_update(self):
        """Seconds that the device needs for a step of the optimizer; 0 on the host, where a wait is seen as such."""
        taken = []
        for _ in range(5 if self._training.device == "cuda" else 0):
            self._training.forward_backward()
            self._training.synchronize()
            before = time.perf_counter()
            self._training.update()
            self._training.synchronize()
            taken.append(time.perf_counter() - before)
        return statistics.median(taken) if taken else 0.0

    def check(self, saver):
        """Whether what is restored is what was saved, to the bit, although the training went on."""
        chosen = self._savers[saver]
        state = self._training.state()
        expected = model.digest(state)
        chosen.save(state)
        self._training.forward_backward()
        chosen.wait()
        self._training.update()
        assert model.digest(self._training.state()) != expected
        chosen.drain()
        same = model.digest(chosen.restored()) == expected
        chosen.discard()
        return {"same": same}

    def close(self):
        """Let go of everything that saves: a child that is left keeps the task from ending."""
        for saver in self._savers.values():
            saver.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        shutil.rmtree(self._work)
        return {}

    # -- steps -----------------------------------------------------------------------------------------------------

    def train(self, steps, saver="", every=20, threads=0):
        """Time so many steps; with a saver, every so many of them begin with a checkpoint.

        Uploads are under way from the first step on: its checkpoint is never in the store before the next one's turn.
        """
        torch.set_num_threads(threads or torch.get_num_threads())
        chosen, times, under_way = self._savers.get(saver), [], 0
        for number in range(steps):
            self._training.synchronize()
            began = time.perf_counter()
            if chosen and not number % every:
                chosen.save(self._training.state())
            self._training.forward_backward()
            if chosen and not number % every:
                chosen.wait()
            self._training.update()
            self._training.synchronize()
            times.append(time.perf_counter() - began)
            under_way += bool(chosen) and current.checkpoint.status()["pending"] > 0
        return {"times": times, "under way": under_way}

    def drain(self):
        current.checkpoint.flush()
        return {}

    # -- memory ----------------------------------------------------------------------------------------------------

    def memory(self, saver, count):
        """Save so often, each time while the one before is uploaded; what is in memory after each."""
        chosen, samples, pending = self._savers[saver], [memory.sample()], []
        for _ in range(count):
            chosen.save(self._training.state())
            chosen.wait()
            self._training.update()
            pending.append(chosen.saved)
            if len(pending) > 1:
                pending.pop(0).wait()
            samples.append(memory.sample())
        return {"samples": samples}

    # -- restores --------------------------------------------------------------------------------------------------

    def save_for_restores(self):
        """One checkpoint of each kind that can be restored, in the store; and the plain files beside it."""
        self._restores = restores.Restores(self._training, self._savers, self._work)
        return {"ways": self._restores.ways()}

    def restore(self, way, check=False):
        return self._restores.restore(way, check)


def _version(name):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""
