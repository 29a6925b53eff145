"""A flow whose first step sleeps, with or without ``@checkpoint``; it writes when what happened to ``$BENCH_OUT``.

``$BENCH_OPTIONS``: the decorator's options as JSON, or ``null`` for no decorator. ``$BENCH_SLEEP``: seconds.
It imports nothing of this repository.
"""

import functools
import json
import os
import time

import metaflow.task
from metaflow import FlowSpec, step
from metaflow.plugins import STEP_DECORATORS

OPTIONS = json.loads(os.environ["BENCH_OPTIONS"])
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


def decorated(function):
    return function if OPTIONS is None else DECORATOR(**OPTIONS)(function)


if OPTIONS is not None:
    from metaflow import checkpoint as DECORATOR

    hooks = next(deco for deco in STEP_DECORATORS if deco.name == "checkpoint")
    for hook in ("task_pre_step", "task_post_step", "task_finished"):
        timed(hooks, hook, hook)
timed(metaflow.task.MetaflowTask, "_exec_step_function", "step")

run_step = metaflow.task.MetaflowTask.run_step


def run_and_write(self, step_name, *args, **kwargs):
    begin = time.monotonic()
    run_step(self, step_name, *args, **kwargs)
    if step_name == "start":
        with open(os.environ["BENCH_OUT"], "w") as file:
            json.dump({**SPANS, "task": [begin, time.monotonic()]}, file)


metaflow.task.MetaflowTask.run_step = run_and_write


class BenchOverhead(FlowSpec):
    @decorated
    @step
    def start(self):
        time.sleep(float(os.environ["BENCH_SLEEP"]))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BenchOverhead()
