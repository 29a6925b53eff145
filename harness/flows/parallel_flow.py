"""A gang of two on this machine; every rank saves at the same time."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, parallel, step

OPTIONS = json.loads(os.environ.get("CKPT_OPTIONS", "{}"))
SAVES = 6


class ParallelFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @checkpoint(**OPTIONS)
    @parallel
    @step
    def train(self):
        self.rank = current.parallel.node_index
        self.saved = []
        for count in range(SAVES):
            with open(os.path.join(current.checkpoint.directory, "content"), "w") as file:
                file.write(f"rank {self.rank} {count}")
            self.saved.append(current.checkpoint.save(metadata={"rank": self.rank, "count": count}))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.saved = [reference for task in inputs for reference in task.saved]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ParallelFlow()
