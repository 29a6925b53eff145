"""A task that obeys ``Commands`` of the module ``$BENCH_COMMANDS``; run by ``stress.bench.tasks`` for either package.

It imports nothing of this repository's benchmarks. Commands and answers are JSON lines on the Unix socket
``$BENCH_SOCKET``; ``$BENCH_OPTIONS``: the decorator's options; what happened when is written to ``$BENCH_OUT``.
"""

import importlib
import json
import os
import socket
import sys
import traceback

if "--retry-count" in sys.argv:
    # A task: each attempt finds an empty temporary directory, as on another machine.
    attempt = sys.argv[sys.argv.index("--retry-count") + 1]
    os.environ["TMPDIR"] = os.path.join(os.environ["TMPDIR"], f"machine-{attempt}")
    os.makedirs(os.environ["TMPDIR"], exist_ok=True)

import spans
from metaflow import FlowSpec, checkpoint, current, retry, step

spans.time_hooks("task_pre_step", "task_post_step")
spans.time_task("start")


class Failure(Exception):
    """Told to fail."""


def carry_out(commands, op, arguments):
    """The command's answer, or what went wrong with it: the other side ends the benchmark then."""
    try:
        return getattr(commands, op)(**arguments)
    except Exception:
        return {"error": traceback.format_exc()}


def obey(commands):
    """Run commands until the other side hangs up."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(os.environ["BENCH_SOCKET"])
        with channel.makefile("rw") as lines:
            for line in lines:
                command = json.loads(line)
                op = command.pop("op")
                if op == "start":
                    begin, end = spans.SPANS["task_pre_step"]
                    answer = {"attempt": current.retry_count, "pathspec": current.pathspec, "pre_step": end - begin}
                elif op == "fail":
                    answer = {}
                else:
                    answer = carry_out(commands, op, command)
                lines.write(json.dumps(answer) + "\n")
                lines.flush()
                if op == "fail":
                    raise Failure("as told")


class BenchTask(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(**json.loads(os.environ["BENCH_OPTIONS"]))
    @step
    def start(self):
        obey(importlib.import_module(os.environ["BENCH_COMMANDS"]).Commands())
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BenchTask()
