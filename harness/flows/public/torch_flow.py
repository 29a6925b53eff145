"""Plain torch: each epoch is a directory that is saved, and whatever is best so far is saved as a file as well."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, model, retry, step


class TorchFlow(FlowSpec):
    epochs = Parameter("epochs", default=6)

    @retry(times=3)
    @checkpoint
    @step
    def start(self):
        from torch_training import train

        checkpoint_path = None
        if current.checkpoint.is_loaded:
            checkpoint_path = os.path.join(current.checkpoint.directory, "checkpoint.pth")
        self.losses, self.best, self.weights, self.latest_checkpoint = train(
            checkpoint_path, self.epochs, "./model_checkpoints/" + current.task_id
        )
        self.next(self.end)

    @model(load=["latest_checkpoint"])
    @step
    def end(self):
        from torch_training import test

        self.tested = test(os.path.join(current.model.loaded["latest_checkpoint"], "checkpoint.pth"))


if __name__ == "__main__":
    TorchFlow()
