"""Counts to 18, fails on purpose at 9 in the first attempt, and goes on from its last checkpoint in the second.

python examples/counter_flow.py run
"""

import json
import os
import statistics
import time

from metaflow import FlowSpec, checkpoint, current, retry, step
from metaflow.exception import MetaflowException


class IntendedFailure(MetaflowException):
    """Stands for a machine that falls over. Metaflow shows it without a traceback."""

    headline = "This failure is intended: it is part of the demo"


class CounterFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def train(self):
        state = os.path.join(current.checkpoint.directory, "state.json")
        self.counter, self.resumed_at, self.seconds = 0, None, []
        if current.checkpoint.is_loaded:
            with open(state) as file:
                self.counter = self.resumed_at = json.load(file)["counter"]
            print(f"Resumed at {self.counter}")

        while self.counter < 18:
            self.counter += 1
            with open(state, "w") as file:
                json.dump({"counter": self.counter}, file)
            began = time.perf_counter()
            self.last_checkpoint = current.checkpoint.save(metadata={"counter": self.counter})
            self.seconds.append(time.perf_counter() - began)
            if self.counter == 9 and current.retry_count == 0:
                raise IntendedFailure("The counter stops at 9. Metaflow retries the step, which resumes at 9.")

        # The end of the step waits for the store by itself. The demo waits here, to measure it.
        saved = time.perf_counter()
        self.last_checkpoint.wait()
        self.until_durable = time.perf_counter() - saved
        self.saved = current.checkpoint.list()
        self.next(self.end)

    @step
    def end(self):
        print(f"Counted to {self.counter}, resumed at {self.resumed_at}")
        attempts = [sum(each["attempt"] == attempt for each in self.saved) for attempt in (0, 1)]
        print(f"In the store: {attempts[0]} checkpoints of the failed attempt, {attempts[1]} of the second one")
        typical, first = statistics.median(self.seconds), self.seconds[0]
        print(f"save() returned after {1000 * typical:.1f} ms (median of {len(self.seconds)})")
        print(f"The first save() took {1000 * first:.0f} ms: the agent first asks the store about this attempt")
        print(f"The last checkpoint was durable in the store {1000 * self.until_durable:.0f} ms after save() returned")
        print(f"Its files: {self.saved[0]['url']}")


if __name__ == "__main__":
    CounterFlow()
