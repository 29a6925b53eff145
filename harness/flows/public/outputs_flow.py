"""A trainer's whole output directory, saved as it is; and what the framework takes of it when it is to go on."""

import importlib
import os

from metaflow import FlowSpec, checkpoint, current, step


class OutputsFlow(FlowSpec):
    @checkpoint(storage_format=os.environ["STORAGE_FORMAT"])
    @step
    def start(self):
        training = importlib.import_module(os.environ["TRAINING"])
        self.directory = current.checkpoint.directory
        training.fill(self.directory)
        self.saved = current.checkpoint.save()
        self.before = training.chosen(self.directory)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OutputsFlow()
