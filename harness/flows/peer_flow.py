"""Uses only what metaflow-checkpoint and this package have in common, so that either can run it."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, step


def train(text):
    """Save a nested directory as files and as a tar, and a single file; tell what was loaded and what was saved."""
    directory = current.checkpoint.directory
    loaded = None
    if current.checkpoint.is_loaded:
        with open(os.path.join(directory, "state.json")) as file:
            loaded = json.load(file)
    os.makedirs(os.path.join(directory, "deep", "er"), exist_ok=True)
    for path in ("state.json", "deep/er/one", "deep/two"):
        with open(os.path.join(directory, path), "w") as file:
            json.dump({"path": path, "text": text, "attempt": current.retry_count}, file)
    saved = [
        current.checkpoint.save(name="plain", metadata={"n": 0}),
        current.checkpoint.save(name="packed", metadata={"n": 1}, storage_format="tar"),
        current.checkpoint.save(os.path.join(directory, "state.json"), name="single", metadata={"n": 2}),
    ]
    return loaded, [dict(reference) for reference in saved]


class PeerFlow(FlowSpec):
    @checkpoint(load_policy="eager", show_card=False)
    @step
    def start(self):
        self.text = "start"
        self.loaded, self.saved = train(self.text)
        self.letters = ["a", {"b": [1, 2.5, None]}]
        self.next(self.outer, foreach="letters")

    @checkpoint(load_policy="eager", show_card=False)
    @step
    def outer(self):
        self.letter = self.input
        self.text = f"outer {self.letter}"
        self.loaded, self.saved = train(self.text)
        self.numbers = [7]
        self.next(self.inner, foreach="numbers")

    @checkpoint(load_policy="eager", show_card=False)
    @step
    def inner(self):
        self.text = f"inner {self.letter} {self.input}"
        self.loaded, self.saved = train(self.text)
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
    PeerFlow()
