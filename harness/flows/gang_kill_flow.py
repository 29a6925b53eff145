"""A gang that saves together again and again. It says what each rank began with, and never begins with a mixture."""

import json
import os
import random
import time

from metaflow import FlowSpec, checkpoint, current, parallel, retry, step

NODES, SAVES = int(os.environ.get("NODES", "4")), int(os.environ.get("SAVES", "20"))
SAID = os.environ["SAID"]


def say(name, text):
    with open(os.path.join(SAID, f"new-{name}"), "w") as file:
        file.write(text)
    os.rename(os.path.join(SAID, f"new-{name}"), os.path.join(SAID, name))


class GangKillFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=NODES)

    @retry(times=4, minutes_between_retries=0)
    @checkpoint
    @parallel
    @step
    def train(self):
        rank, attempt, directory = current.parallel.node_index, current.retry_count, current.checkpoint.directory
        count = 0
        if current.checkpoint.is_loaded:
            counts = {}
            for number in range(NODES):
                with open(os.path.join(directory, f"shard-{number}")) as file:
                    counts[number] = json.load(file)["count"]
            assert len(set(counts.values())) == 1, f"a mixture was loaded: {counts}"
            count = counts[0]
        loaded = current.checkpoint.info["key"] if current.checkpoint.is_loaded else None
        say(f"began-{attempt}-{rank}", json.dumps({"count": count, "key": loaded, "pid": os.getpid()}))
        mine = os.path.join(directory, f"rank-{rank}")
        os.makedirs(mine, exist_ok=True)
        chance = random.Random(f"{rank} {attempt}")
        while count < SAVES:
            count += 1
            time.sleep(chance.uniform(0, 0.06))
            with open(os.path.join(mine, f"shard-{rank}"), "w") as file:
                json.dump({"count": count, "rank": rank, "ballast": "x" * 50_000}, file)
            current.checkpoint.save(mine, metadata={"count": count}, collective=True)
        self.count = count
        self.next(self.join)

    @step
    def join(self, inputs):
        self.counts = [task.count for task in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GangKillFlow()
