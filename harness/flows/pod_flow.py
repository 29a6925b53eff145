"""Counts in a pod, a checkpoint a count: in the first attempt until it is killed, in the second ``TARGET`` more."""

import json
import os
import subprocess
import sys
import time

from metaflow import FlowSpec, checkpoint, current, kubernetes, retry, step

TARGET = 5


class PodFlow(FlowSpec):
    @kubernetes
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        folder = current.checkpoint.directory
        state = os.path.join(folder, "state.json")
        self.counter, self.resumed_at = 0, None
        if current.checkpoint.is_loaded:
            with open(state) as file:
                self.counter = self.resumed_at = json.load(file)["counter"]
            with open(os.path.join(folder, "weights"), "rb") as file:
                self.intact = file.read() == bytes([self.counter % 256]) * 300_000
        while current.retry_count == 0 or self.counter < self.resumed_at + TARGET:
            self.counter += 1
            with open(state, "w") as file:
                json.dump({"counter": self.counter}, file)
            with open(os.path.join(folder, "weights"), "wb") as file:
                file.write(bytes([self.counter % 256]) * 300_000)
            current.checkpoint.save(metadata={"counter": self.counter})
            if current.retry_count == 0:
                time.sleep(0.1)  # An epoch.
                if os.path.exists(current.spot_termination_notice):
                    print(f"Stopped at {self.counter}")
                    while True:  # Until the pod's end.
                        time.sleep(1)
        self.status = json.loads(
            subprocess.check_output([sys.executable, "-m", "async_ckpt.cli", "status", "--json"], text=True)
        )
        self.next(self.end)

    @step
    def end(self):
        print(f"Counted to {self.counter}, resumed at {self.resumed_at}")


if __name__ == "__main__":
    PodFlow()
