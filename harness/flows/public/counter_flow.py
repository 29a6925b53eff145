"""The documentation's counter: it writes one file over and over, saves it, and fails by itself before it has enough."""

import os

from metaflow import FlowSpec, checkpoint, current, model, retry, step


class CounterFlow(FlowSpec):
    enough = 15

    @checkpoint
    @retry(times=4)
    @step
    def start(self):
        counter, path = 0, os.path.join(current.checkpoint.directory, "counter.txt")
        self.resumed_at = self.loaded_from = None
        if current.checkpoint.is_loaded and os.path.exists(path):
            info = current.checkpoint.info
            self.loaded_from = [info.pathspec, info.attempt]
            with open(path) as file:
                counter = self.resumed_at = int(file.read())
        for count in range(counter, counter + 10):
            with open(path, "w") as file:
                file.write(str(count))
            self.final_checkpoint = current.checkpoint.save()
        self.counter = count
        if count < self.enough:
            raise ValueError("retry")
        self.next(self.end)

    @model(load="final_checkpoint")
    @step
    def end(self):
        with open(os.path.join(current.model.loaded["final_checkpoint"], "counter.txt")) as file:
            self.read_by_model = int(file.read())


if __name__ == "__main__":
    CounterFlow()
