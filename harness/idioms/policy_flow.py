"""Metaflow's documentation, "Selecting a checkpoint to use": a flow that loads what another flow saved."""

import os

from metaflow import Flow, FlowSpec, checkpoint, current, namespace, step
from seen import saw, told


class CounterPolicyFlow(FlowSpec):
    @checkpoint(load_policy=None)
    @step
    def start(self):
        namespace(None)
        run = Flow("CheckpointCounterFlow").latest_successful_run
        cp = run["flaky_count"].task["latest_checkpoint"].data
        current.checkpoint.load(cp)
        with open(os.path.join(current.checkpoint.directory, "counter")) as f:
            self.counter = int(f.read())
        saw("by the artifact", [self.counter, os.listdir(current.checkpoint.directory)])

        run = Flow("CheckpointCounterFlow").latest_run
        listed = current.checkpoint.list(task=run["flaky_count"].task)
        saw("listed", [told(entry) for entry in listed])
        current.checkpoint.load(listed[-1])
        with open(os.path.join(current.checkpoint.directory, "counter")) as f:
            saw("by the list", [f.read(), os.listdir(current.checkpoint.directory)])
        self.next(self.end)

    @step
    def end(self):
        saw("end", self.counter)


if __name__ == "__main__":
    CounterPolicyFlow()
