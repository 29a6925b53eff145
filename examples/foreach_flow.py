"""Trains with several learning rates side by side; one falls over, and it alone is retried from where it was.

python examples/foreach_flow.py run
"""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step


class ForeachFlow(FlowSpec):
    @step
    def start(self):
        self.rates = [0.1, 0.01, 0.001]
        self.next(self.train, foreach="rates")

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def train(self):
        self.rate, self.began_at = self.input, 0
        state = os.path.join(current.checkpoint.directory, "state.json")
        if current.checkpoint.is_loaded:
            with open(state) as file:
                self.began_at = json.load(file)["epoch"] + 1
        for epoch in range(self.began_at, 5):
            with open(state, "w") as file:
                json.dump({"rate": self.rate, "epoch": epoch}, file)
            self.last = current.checkpoint.save(metadata={"rate": self.rate, "epoch": epoch})
            if self.rate == 0.01 and epoch == 2 and current.retry_count == 0:
                raise RuntimeError("This failure is intended: the retry resumes")
        self.saved = current.checkpoint.list()
        self.next(self.join)

    @step
    def join(self, inputs):
        # Each reference says whose it is; Checkpoint().load(reference, path) brings it from anywhere.
        self.models = {each.rate: each.last for each in inputs}
        self.began_at = {each.rate: each.began_at for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        print(f"The learning rates began at {self.began_at}")


if __name__ == "__main__":
    ForeachFlow()
