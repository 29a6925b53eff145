"""Four nodes train one model together, each its own shard of it. One dies; all go on from the same checkpoint.

python examples/gang_flow.py run
"""

import json
import os

from metaflow import FlowSpec, Parameter, checkpoint, current, parallel, retry, step


class GangFlow(FlowSpec):
    nodes = Parameter("nodes", default=4)
    steps = Parameter("steps", default=6)

    @step
    def start(self):
        self.next(self.train, num_parallel=self.nodes)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @parallel
    @step
    def train(self):
        rank, directory = current.parallel.node_index, current.checkpoint.directory
        self.count, self.resumed_at = 0, None
        if current.checkpoint.is_loaded:
            # All shards are here, this rank's as well; shard="own" would have brought only that.
            with open(os.path.join(directory, f"shard-{rank}.json")) as file:
                self.count = self.resumed_at = json.load(file)["count"]
            print(f"Rank {rank} resumes at {self.count}")

        mine = os.path.join(directory, f"rank-{rank}")
        os.makedirs(mine, exist_ok=True)
        while self.count < self.steps:
            self.count += 1
            with open(os.path.join(mine, f"shard-{rank}.json"), "w") as file:
                json.dump({"rank": rank, "count": self.count}, file)
            current.checkpoint.save(mine, metadata={"count": self.count}, collective=True)
            if rank == 1 and self.count == 4 and current.retry_count == 0:
                raise RuntimeError("This failure of rank 1 is intended: the retry resumes")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.resumed = [task.resumed_at for task in inputs]
        self.next(self.end)

    @step
    def end(self):
        print(f"All ranks resumed at the same count: {self.resumed}")


if __name__ == "__main__":
    GangFlow()
