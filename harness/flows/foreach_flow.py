"""Every split of a foreach, and of one in it over values that are not JSON, fails once and resumes from its own."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step


class Shape:
    """Neither JSON nor a telling repr."""

    def __init__(self, sides):
        self.sides = sides


def train(name):
    """Save two states and fail; resume from the second."""
    state = os.path.join(current.checkpoint.directory, "state.json")
    if current.checkpoint.is_loaded:
        with open(state) as file:
            return json.load(file)
    for epoch in range(2):
        with open(state, "w") as file:
            json.dump({"name": name, "epoch": epoch}, file)
        current.checkpoint.save(metadata={"name": name})
    raise RuntimeError(f"{name} falls over")


class ForeachFlow(FlowSpec):
    @step
    def start(self):
        self.letters = ["a", "b"]
        self.next(self.outer, foreach="letters")

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def outer(self):
        self.letter = self.input
        self.resumed = train(self.letter)
        self.shapes = [Shape(3), (Shape(4), {5})]
        self.next(self.inner, foreach="shapes")

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def inner(self):
        self.name = f"{self.letter}{self.index}"
        self.resumed = train(self.name)
        self.next(self.join_inner)

    @step
    def join_inner(self, inputs):
        self.next(self.join_outer)

    @step
    def join_outer(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ForeachFlow()
