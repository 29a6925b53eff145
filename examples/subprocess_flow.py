"""One process a rank, as torchrun starts them: each saves its own shard, and resumes from it after a failure.

python examples/subprocess_flow.py run
"""

import json
import os
import subprocess
import sys

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step

RANKS, EPOCHS = 4, 6


def train(rank):
    """What a rank does. It knows of the task only what it inherits: the environment."""
    checkpoint, name, first = Checkpoint(), f"rank-{rank}", 0
    for newest in checkpoint.list(name=name)[:1]:  # Of all attempts of this task, also what is still on its way.
        checkpoint.load(newest, f"shard-{rank}")
        with open(f"shard-{rank}/state.json") as file:
            first = json.load(file)["epoch"] + 1
    os.makedirs(f"shard-{rank}", exist_ok=True)
    for epoch in range(first, EPOCHS):
        with open(f"shard-{rank}/state.json", "w") as file:
            json.dump({"rank": rank, "epoch": epoch}, file)
        # latest=False: no retry of the step is to load the shard of one rank by itself.
        checkpoint.save(f"shard-{rank}", name=name, metadata={"epoch": epoch}, latest=False)
        if epoch == 2 and rank == 1 and os.environ["RETRY_COUNT"] == "0":
            sys.exit("Rank 1 fails, as intended: the retry resumes")
    print(json.dumps({"rank": rank, "began_at": first}))


class SubprocessFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        # The same with torchrun: ["torchrun", "--nproc-per-node", str(RANKS), __file__]
        ranks = [
            subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "train"], stdout=subprocess.PIPE, text=True,
                env={**os.environ, "RANK": str(rank), "RETRY_COUNT": str(current.retry_count)},
            )
            for rank in range(RANKS)
        ]  # fmt: skip
        # The step must outlive its ranks: what they save after its end is refused.
        outputs = [rank.communicate()[0] for rank in ranks]
        if failed := [number for number, rank in enumerate(ranks) if rank.returncode]:
            raise RuntimeError(f"Ranks {failed} failed")
        self.began_at = [json.loads(output)["began_at"] for output in outputs]
        self.newest = [current.checkpoint.list(name=f"rank-{rank}")[0] for rank in range(RANKS)]
        self.next(self.end)

    @step
    def end(self):
        print(f"The ranks began at {self.began_at}")


if __name__ == "__main__":
    if sys.argv[1:] == ["train"]:
        train(int(os.environ["RANK"]))
    else:
        SubprocessFlow()
