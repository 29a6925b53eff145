"""A flow whose first step sleeps, with or without ``@checkpoint``; it writes when what happened to ``$BENCH_OUT``.

``$BENCH_OPTIONS``: the decorator's options as JSON, or ``null`` for no decorator. ``$BENCH_SLEEP``: seconds.
It imports nothing of this repository.
"""

import json
import os
import time

import spans
from metaflow import FlowSpec, step

OPTIONS = json.loads(os.environ["BENCH_OPTIONS"])


def decorated(function):
    return function if OPTIONS is None else DECORATOR(**OPTIONS)(function)


if OPTIONS is not None:
    from metaflow import checkpoint as DECORATOR

    spans.time_hooks("task_pre_step", "task_post_step", "task_finished")
spans.time_task("start")


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
