"""Keeps its own checkpoints in its datastore, and reads those of ``TASK`` in an artifact store with ``CONFIG``."""

import json
import os

from metaflow import Checkpoint, FlowSpec, Task, artifact_store_from, checkpoint, current, namespace, step


class ReaderFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        namespace(None)
        task = Task(os.environ["TASK"])
        reference = current.checkpoint.save(os.environ["OWN"], name="own")
        current.checkpoint.flush()
        self.read = {}
        with artifact_store_from(task=task, config=json.loads(os.environ["CONFIG"])):
            listed = Checkpoint().list(task=task, attempt=0)
            self.names = sorted(entry["name"] for entry in listed)
            Checkpoint().load(listed[0], "by entry")
            current.checkpoint.load(listed[0]["key"], "by key")
            current.checkpoint.load(reference, "own")
        current.checkpoint.load(reference, "own afterwards")
        for folder in ("by entry", "by key", "own", "own afterwards"):
            (name,) = os.listdir(folder)
            with open(os.path.join(folder, name)) as file:
                self.read[folder] = file.read()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ReaderFlow()
