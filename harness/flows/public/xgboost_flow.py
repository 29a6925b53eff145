"""XGBoost: the booster is pickled over the same file again and again, and `@model` keeps the last one."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, model, retry, step


class XgboostFlow(FlowSpec):
    rounds = Parameter("rounds", default=16)

    @model
    @retry
    @checkpoint
    @step
    def start(self):
        from xgboost_training import Checkpointer, predictions_of, train

        before = Checkpointer.load() if current.checkpoint.is_loaded else None
        booster, self.losses = train(before, self.rounds)
        self.weights = predictions_of(booster)
        booster.save_model("model.json")
        self.xgboost_model = current.model.save("model.json", metadata={"my_message": "hi"})
        self.next(self.end)

    @model(load="xgboost_model")
    @step
    def end(self):
        from xgboost_training import test

        self.tested = test(os.path.join(current.model.loaded["xgboost_model"], "model.json"))


if __name__ == "__main__":
    XgboostFlow()
