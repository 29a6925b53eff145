"""Keras: its own ModelCheckpoint, which saves each file that it writes."""

import os
import sys

from metaflow import FlowSpec, Parameter, checkpoint, current, model, retry, step

sys.modules["tensorflow"] = None  # As if it were not installed: Keras would import it, for seconds.


class KerasFlow(FlowSpec):
    epochs = Parameter("epochs", default=5)

    @model
    @retry(times=3)
    @checkpoint
    @step
    def start(self):
        from keras_training import MetaflowKerasCheckpoint, train

        best_cb = MetaflowKerasCheckpoint(
            filepath="./model_checkpoints/" + current.task_id + "/checkpoint_{epoch}.keras",
            save_weights_only=False,
            monitor="val_loss",
            mode="min",
            save_best_only=True,
        )
        checkpoint_path, initial_epoch = None, 0
        if current.checkpoint.is_loaded:
            info = current.checkpoint.info
            checkpoint_path = os.path.join(current.checkpoint.directory, os.path.basename(info.metadata["latest_file"]))
            initial_epoch = info.metadata["epoch"] + 1
        network, self.losses, self.weights = train(checkpoint_path, initial_epoch, [best_cb], self.epochs)
        self.best_checkpoint = best_cb.latest_checkpoint
        self.filename = "keras_model.h5"
        network.save(self.filename)
        self.keras_model = current.model.save(self.filename, metadata={"epochs": self.epochs})
        self.next(self.end)

    @model(load=["keras_model", "best_checkpoint"])
    @step
    def end(self):
        from keras_training import test

        self.tested = test(os.path.join(current.model.loaded["keras_model"], self.filename))
        self.best = sorted(os.listdir(current.model.loaded["best_checkpoint"]))


if __name__ == "__main__":
    KerasFlow()
