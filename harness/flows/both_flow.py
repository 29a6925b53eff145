"""What of metaflow-checkpoint flows use beside ``@checkpoint``, with checkpoints of ours."""

import os

from metaflow import Checkpoint, FlowSpec, checkpoint, current, load_model, model, step


class BothFlow(FlowSpec):
    @model
    @checkpoint
    @step
    def start(self):
        with open(os.path.join(current.checkpoint.directory, "weights"), "w") as file:
            file.write("trained")
        self.files = current.checkpoint.save(name="epoch", metadata={"epoch": 1})
        self.packed = current.checkpoint.save(name="packed", storage_format="tar")
        current.checkpoint.flush()
        self.saved = current.model.save(current.checkpoint.directory, label="best", metadata={"from": "start"})
        self.next(self.end)

    @model(load=["files", "packed", "saved"])
    @checkpoint(load_policy="none")
    @step
    def end(self):
        self.seen = {}
        for name in ("files", "packed", "saved"):
            self.seen[f"@model({name})"] = read(current.model.loaded[name])
            load_model(getattr(self, name), name)
            self.seen[f"load_model({name})"] = read(name)
        with Checkpoint() as loaded:
            loaded.load(self.files)
            self.seen["Checkpoint"] = read(loaded.directory)


def read(folder):
    with open(os.path.join(folder, "weights")) as file:
        return file.read()


if __name__ == "__main__":
    BothFlow()
