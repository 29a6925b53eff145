"""What the flow with Keras trains, and the callback that saves."""

import glob
import os
import re

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from dying import digest, wait_to_be_killed
from keras.callbacks import ModelCheckpoint
from metaflow import Checkpoint


class MetaflowKerasCheckpoint(ModelCheckpoint):
    _pointer_id = 0

    def __init__(self, *args, name=None, **kwargs):
        type(self)._pointer_id += 1
        super().__init__(*args, **kwargs)
        self._chckpt_name = name or f"metaflow_keras_checkpoint_{self._pointer_id}"
        self.checkpointer = Checkpoint()
        self.latest_checkpoint = None
        self._files = []

    def _save_model(self, epoch, batch, logs):
        super()._save_model(epoch, batch, logs)
        files = glob.glob(re.sub(r"\{[^}]*\}", "*", self.filepath))
        if set(files) == set(self._files):
            return
        latest_file = self._get_file_path(epoch, batch, logs or {})
        self.latest_checkpoint = self.checkpointer.save(
            latest_file,
            name=self._chckpt_name,
            metadata={"epoch": epoch, "latest_file": latest_file, "saved_from": "KerasTrainer"},
        )
        self._files = files
        wait_to_be_killed(epoch)


def make_data(seed, count):
    inputs = np.random.default_rng(seed).standard_normal((count, 16)).astype("float32")
    return inputs, inputs[:, :4].argmax(1)


def make_model():
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((16,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    return network


def train(checkpoint_path, initial_epoch, callbacks, num_epochs):
    """The trained model, the losses of this attempt by epoch, and the digest of the weights."""
    network = keras.models.load_model(checkpoint_path) if checkpoint_path else make_model()
    history = network.fit(
        *make_data(1, 256),
        epochs=num_epochs,
        initial_epoch=initial_epoch,
        validation_data=make_data(2, 64),
        shuffle=False,
        callbacks=callbacks,
        verbose=2,
    )
    losses = dict(zip(history.epoch, history.history["val_loss"], strict=True))
    return network, losses, digest(network.get_weights())


def test(checkpoint_path):
    network = make_model()
    network.load_weights(checkpoint_path)
    return network.evaluate(*make_data(2, 64), verbose=2)
