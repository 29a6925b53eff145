"""Counts to 18, fails at 9 in the first attempt, and goes on from its last checkpoint in the second.

python examples/counter_flow.py run
"""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step


class CounterFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def train(self):
        state = os.path.join(current.checkpoint.directory, "state.json")
        self.counter, self.resumed_at = 0, None
        if current.checkpoint.is_loaded:
            with open(state) as file:
                self.counter = self.resumed_at = json.load(file)["counter"]
            print(f"Resumed at {self.counter}")

        while self.counter < 18:
            self.counter += 1
            with open(state, "w") as file:
                json.dump({"counter": self.counter}, file)
            self.last_checkpoint = current.checkpoint.save(metadata={"counter": self.counter})
            if self.counter == 9 and current.retry_count == 0:
                raise RuntimeError("The machine fell over at 9")
        self.next(self.end)

    @step
    def end(self):
        print(f"Counted to {self.counter}, resumed at {self.resumed_at}")


if __name__ == "__main__":
    CounterFlow()
