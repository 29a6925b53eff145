"""@checkpoint among other decorators, in a foreach, in a directory of one's own, and options as text."""

import os
import time

from metaflow import FlowSpec, card, catch, checkpoint, current, retry, step, timeout
from seen import saw, told, tree, write


class DecoratedFlow(FlowSpec):
    @step
    def start(self):
        self.models = ["Qwen/a", "Qwen/b"]
        self.next(self.train, foreach="models")

    @checkpoint(temp_dir_root="scratch/here", show_card=False)
    @retry(times=1, minutes_between_retries=0)
    @step
    def train(self):
        directory = current.checkpoint.directory
        where = os.path.relpath(os.path.realpath(directory), os.path.realpath("scratch/here"))
        saw(f"temp_dir_root {self.input}", [not where.startswith(".."), os.path.isabs(directory)])
        saw(f"resumed {self.input}", [current.retry_count, current.checkpoint.is_loaded, tree(directory)])
        write(directory, {"state": f"{self.input} of attempt {current.retry_count}"})
        self.reference = current.checkpoint.save(name=f"run_{self.index}", metadata={"model": self.input})
        saw(f"list {self.input}", sorted([c["attempt"], c["name"]] for c in current.checkpoint.list()))
        if current.retry_count == 0 and self.index == 1:
            raise RuntimeError("Split 1 fails once")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs, exclude=["reference"])
        for task in sorted(inputs, key=lambda task: task.index):
            saw("joined", told(task.reference))
        self.next(self.impatient)

    @timeout(seconds=3)
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @step
    def impatient(self):
        saw("after a timeout", [current.retry_count, tree(current.checkpoint.directory)])
        write(current.checkpoint.directory, {"state": "saved in time"})
        current.checkpoint.save()
        if current.retry_count == 0:
            time.sleep(60)
        self.next(self.caught)

    @catch(var="problem")
    @checkpoint(show_card=False)
    @step
    def caught(self):
        write(current.checkpoint.directory, {"state": "before the error"})
        current.checkpoint.save(name="last words")
        raise RuntimeError("Caught")
        self.next(self.end)

    @card(type="blank")
    @checkpoint
    @step
    def end(self):
        from metaflow import Run

        task = Run(f"{current.flow_name}/{current.run_id}")["caught"].task
        saw("caught", [type(self.problem).__name__, [c["name"] for c in current.checkpoint.list(task=task)]])
        current.checkpoint.save()


if __name__ == "__main__":
    DecoratedFlow()
