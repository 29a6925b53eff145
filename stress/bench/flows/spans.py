"""What a task did when: for the flows beside this file; it imports nothing of this repository."""

import functools
import json
import os
import time

import metaflow.task
from metaflow.plugins import STEP_DECORATORS

SPANS = {}


def timed(owner, method, name):
    """Record when ``owner.method`` begins and ends (seconds of the monotonic clock)."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        begin = time.monotonic()
        try:
            return original(*args, **kwargs)
        finally:
            SPANS[name] = [begin, time.monotonic()]

    setattr(owner, method, wrapper)


def time_hooks(*hooks):
    """Time these hooks of ``@checkpoint``."""
    decorator = next(deco for deco in STEP_DECORATORS if deco.name == "checkpoint")
    for hook in hooks:
        timed(decorator, hook, hook)


def time_task(step):
    """Time the step's code and the whole task; after this step's task all spans are written to ``$BENCH_OUT``."""
    timed(metaflow.task.MetaflowTask, "_exec_step_function", "step")
    run_step = metaflow.task.MetaflowTask.run_step

    def run_and_write(self, step_name, *args, **kwargs):
        begin = time.monotonic()
        run_step(self, step_name, *args, **kwargs)
        if step_name == step:
            with open(os.environ["BENCH_OUT"], "w") as file:
                json.dump({**SPANS, "task": [begin, time.monotonic()]}, file)

    metaflow.task.MetaflowTask.run_step = run_and_write
