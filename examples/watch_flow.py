"""A trainer that cannot be changed, here a script that knows nothing of Metaflow: what it writes is saved.

python examples/watch_flow.py run
"""

import os
import subprocess
import sys
import tempfile

from metaflow import FlowSpec, checkpoint, current, retry, step

#: Writes checkpoint-<n>/ directories and resumes from one; in the first attempt it dies over the third.
TRAINER = """
import json, os, sys
output, resumed_from = sys.argv[1], sys.argv[2]
done = json.load(open(resumed_from + "/trainer_state.json"))["global_step"] if resumed_from else 0
for step in range(done + 1, 6):
    folder = f"{output}/checkpoint-{step}"
    os.makedirs(folder)
    with open(folder + "/model.bin", "wb") as file:
        file.write(bytes([step]) * 100_000)
    if step == 3 and not resumed_from:
        sys.exit("The trainer fails, as intended: the retry resumes")
    with open(folder + "/trainer_state.json", "w") as file:
        json.dump({"global_step": step}, file)
"""


class WatchFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        self.resumed_from = current.checkpoint.info.metadata["path"] if current.checkpoint.is_loaded else None
        with tempfile.TemporaryDirectory() as output:
            # This trainer writes its state last. Without done=, a checkpoint that was quiet for a while is finished.
            state = "trainer_state.json"
            with current.checkpoint.watch(output, "checkpoint-*", done=state, metadata_from=state):
                resume = current.checkpoint.directory if self.resumed_from else ""
                subprocess.run([sys.executable, "-c", TRAINER, output, resume], check=True)
            # Here all of them are saved: the directory may go.
            self.written = sorted(os.listdir(output))
        self.next(self.end)

    @step
    def end(self):
        print(f"Resumed from {self.resumed_from}, wrote {self.written}")


if __name__ == "__main__":
    WatchFlow()
