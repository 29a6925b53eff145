"""Every Python that finds this writes down each training step's loss, exactly, and dies where it is told to.

No trainer knows of it: what is recorded is whatever ``loss.backward()`` is called on (torch), or a batch's loss as
callbacks get it (Keras). Only processes of a task's attempt record anything.

``CURVES`` names a folder. Each rank of each life (an attempt, or one start of the ranks by torchrun in it) has a file
there, ``<attempt>.<start>.<rank>``, with a line for each step: ``float.hex()`` of its loss. ``CURVE_KILLS`` is a JSON
list of ``[name of such a file, line, seconds]``: SIGKILL comes so many seconds after that line was written.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import subprocess
import sys

_written = 0


def record(loss):
    global _written
    if "ASYNC_CKPT_ATTEMPT" not in os.environ:
        return
    name = ".".join(
        os.environ.get(variable, "0") for variable in ("ASYNC_CKPT_ATTEMPT", "TORCHELASTIC_RESTART_COUNT", "RANK")
    )
    with open(os.path.join(os.environ["CURVES"], name), "a") as file:
        file.write(f"{float(loss).hex()}\n")
    _written += 1
    for where, line, seconds in json.loads(os.environ.get("CURVE_KILLS", "[]")):
        if (where, line) == (name, _written):
            if not seconds:
                os.kill(os.getpid(), signal.SIGKILL)
            # From outside, so that it comes whatever this process does then.
            command = f"sleep {seconds}; kill -KILL {os.getpid()}"
            subprocess.Popen(["sh", "-c", command], start_new_session=True)


def _torch(torch):
    backward = torch.Tensor.backward

    def recorded(self, *arguments, **options):
        backward(self, *arguments, **options)
        record(self.detach())

    torch.Tensor.backward = recorded


def _keras(callback_list):
    ended = callback_list.CallbackList.on_train_batch_end

    def recorded(self, batch, logs=None):
        if sys.modules["keras"].backend.backend() != "torch":  # There ``backward()`` has written it down.
            record(logs["loss"])
        ended(self, batch, logs)

    callback_list.CallbackList.on_train_batch_end = recorded


#: Module → what is done with it once it is imported.
_HOOKS = {"torch": _torch, "keras.src.callbacks.callback_list": _keras}


class _Hooks(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in _HOOKS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def execute_then_hook(module):
            execute(module)
            _HOOKS[name](module)

        spec.loader.exec_module = execute_then_hook
        return spec


if "CURVES" in os.environ:
    sys.meta_path.insert(0, _Hooks())
    sys.modules["tensorflow"] = None  # As if it were not installed: with torch, Keras needs it for nothing.
