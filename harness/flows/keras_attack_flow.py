"""Keras files with odd names and files that are written over, two trainings in one step, another model, a kill as Keras
writes.
"""

import os
import signal
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")

from metaflow import FlowSpec, checkpoint, current, retry, step

sys.modules["tensorflow"] = None  # As if it were not installed: Keras would import it, for seconds.


class KerasAttackFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        import keras

        keras.__version__ = "4.0"  # Later than any that was tried.
        from async_ckpt.integrations.keras import CheckpointCallback

        if current.retry_count == 0:
            files()
            current.checkpoint.save("best.weights.h5", name="second")  # Somebody else's, under a name of ours.
        # Two trainings; the second one is killed as it writes its third checkpoint.
        self.epochs = []
        for name, dies_at in (("first", None), ("second", 3)):
            fit(make_model(), [CheckpointCallback(name=name), dies(dies_at), self.noted(name)])
        self.errors = errors()
        self.again = again()
        self.saved = [[each["name"], each["metadata"]] for each in reversed(current.checkpoint.list())]
        self.first_attempt = [
            [each["name"], each["metadata"]]
            for each in reversed(current.checkpoint.list(attempt=0))
            if each["name"] in ("best", "model")
        ]
        self.loaded = [load(each) for each in reversed(current.checkpoint.list(name="best", attempt=0))]
        self.next(self.end)

    def noted(self, name):
        import keras

        return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: self.epochs.append([name, epoch]))

    @step
    def end(self):
        pass


def make_model(units=4, **options):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units), keras.layers.Dropout(0.5)])
    model.compile(optimizer="adam", loss="mse", **options)
    return model


def fit(model, callbacks, epochs=4, samples=8, **options):
    import numpy as np

    data = np.ones((samples, 2), "float32"), np.ones((samples, 1), "float32")
    return model.fit(*data, batch_size=2, epochs=epochs, verbose=0, callbacks=callbacks, **options)


def dies(nth):
    """Kills the process in the middle of the n-th file of weights, in the first attempt."""
    import keras

    class Dies(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            written, count = self.model.save_weights, 0

            def write(path, *arguments, **options):
                nonlocal count
                count += 1
                if count == nth and current.retry_count == 0:
                    with open(path, "wb") as file:
                        file.write(b"half")
                    os.kill(os.getpid(), signal.SIGKILL)
                written(path, *arguments, **options)

            self.model.save_weights = write

    return Dies()


def files():
    """Files of ModelCheckpoint: with a number in an odd name, and one that is written over."""
    from async_ckpt.integrations.keras import SavedModelCheckpoint

    os.makedirs("ü [1]*")
    with open("ü [1]*/m 9-.keras", "w") as file:
        file.write("there before")
    fit(
        make_model(),
        [
            SavedModelCheckpoint("ü [1]*/m {epoch}-.keras"),
            SavedModelCheckpoint("best.weights.h5", name="best", save_weights_only=True, save_freq=8),
        ],
    )


def load(reference):
    """How often the optimizer of this file had stepped."""
    folder = current.checkpoint.load(reference, f"loaded-{reference['version_id']}")
    model = make_model()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(os.path.join(folder, "best.weights.h5"))
    return int(model.optimizer.iterations)


def errors():
    import keras

    from async_ckpt.errors import UsageError
    from async_ckpt.integrations.keras import CheckpointCallback

    not_built = keras.Sequential([keras.layers.Dense(1)])
    not_built.compile(optimizer="adam", loss="mse")
    attempts = {
        "zero": lambda: CheckpointCallback(every_batches=0),
        "another model": lambda: fit(make_model(5), [CheckpointCallback(name="second")]),
        "fewer batches": lambda: fewer_batches(),
    }
    found = {}
    for what, attempt in attempts.items():
        try:
            attempt()
        except UsageError as error:
            found[what] = str(error)
    return found


def fewer_batches():
    from async_ckpt.integrations.keras import CheckpointCallback

    fit(make_model(), [CheckpointCallback(None, every_batches=3, name="fewer")], epochs=1)
    model = make_model()
    try:
        fit(model, [CheckpointCallback(None, name="fewer")], samples=4)
    finally:
        fit(model, [])  # The model trains again, although that was broken off.


def again():
    """The same callback in a second fit() goes on from the first; and there may be no epoch left."""
    from async_ckpt.integrations.keras import CheckpointCallback

    model, callback = make_model(), CheckpointCallback(None, every_batches=2, name="again")
    fit(model, [callback], epochs=1)
    steps = [int(model.optimizer.iterations)]
    fit(model, [callback], epochs=1)
    steps.append(int(model.optimizer.iterations))
    resumed = make_model()
    fit(resumed, [CheckpointCallback(None, name="again")], epochs=1)
    steps.append(int(resumed.optimizer.iterations))
    done = make_model()
    fit(done, [CheckpointCallback(name="first")])
    steps.append(int(done.optimizer.iterations))
    fit(done, [], epochs=1)  # initial_epoch is not that of the checkpoint.
    return [*steps, int(done.optimizer.iterations)]


if __name__ == "__main__":
    KerasAttackFlow()
