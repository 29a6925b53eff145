"""What the flow with XGBoost trains, and the callback that saves."""

import os
import pickle

import numpy as np
import xgboost as xgb
from dying import digest, wait_to_be_killed
from metaflow import current


class Checkpointer(xgb.callback.TrainingCallback):
    @classmethod
    def _path(cls):
        return os.path.join(current.checkpoint.directory, "xgb_cp.pkl")

    def __init__(self, interval):
        self._interval = interval

    def after_iteration(self, model, epoch, evals_log):
        if epoch > 0 and epoch % self._interval == 0:
            with open(self._path(), "wb") as file:
                pickle.dump(model, file)
            current.checkpoint.save()
            wait_to_be_killed(epoch)

    @classmethod
    def load(cls):
        with open(cls._path(), "rb") as file:
            return pickle.load(file)


def make_data():
    random = np.random.default_rng(0)
    inputs = random.random((200, 10))
    return xgb.DMatrix(inputs, label=(inputs[:, 0] + inputs[:, 1] > random.random(200) * 2).astype(int))


def train(before, rounds):
    """The booster after so many rounds, those of ``before`` included, and the losses of this attempt by round."""
    first = before.num_boosted_rounds() if before else 0
    data, found = make_data(), {}
    booster = xgb.train(
        {"max_depth": 2, "eta": 0.3, "objective": "binary:logistic", "eval_metric": "logloss", "nthread": 1},
        data,
        rounds - first,
        evals=[(data, "train")],
        evals_result=found,
        xgb_model=before,
        callbacks=[Checkpointer(interval=3)],
    )
    assert booster.num_boosted_rounds() == rounds
    return booster, dict(enumerate(found["train"]["logloss"], first))


def predictions_of(booster):
    return digest([booster.predict(make_data())])


def test(path):
    booster = xgb.Booster()
    booster.load_model(path)
    return predictions_of(booster)
