"""Keras trains in a step; killed, it goes on where it was, also within an epoch.

python examples/keras_flow.py run     (needs keras, and torch, tensorflow or jax)
"""

import os

from metaflow import FlowSpec, checkpoint, current, retry, step

os.environ.setdefault("KERAS_BACKEND", "torch")


class KerasFlow(FlowSpec):
    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        import keras
        import numpy as np

        from async_ckpt.integrations.keras import CheckpointCallback, SavedModelCheckpoint

        keras.utils.set_random_seed(0)
        inputs = np.random.default_rng(1).standard_normal((128, 8)).astype("float32")
        targets = np.sin(inputs.sum(axis=1, keepdims=True))
        layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dropout(0.1), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((8,)), *layers])
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")

        # This callback saves and resumes.
        callbacks = [CheckpointCallback(every_batches=3)]
        # And this one is ModelCheckpoint, whose files are saved.
        callbacks += [SavedModelCheckpoint(f"{current.run_id}-{{epoch}}.keras", monitor="loss", save_best_only=True)]
        history = model.fit(inputs, targets, batch_size=8, epochs=3, verbose=2, callbacks=callbacks)
        self.losses = history.history["loss"]
        self.next(self.end)

    @step
    def end(self):
        print(f"Losses of the epochs of the last attempt: {self.losses}")


if __name__ == "__main__":
    KerasFlow()
