"""Saves, and is told to end (SIGTERM) in the middle of its work, as on a machine that is taken away."""

import os
import signal
import time

from metaflow import FlowSpec, checkpoint, current, retry, step

SAVES = 5


class TerminatedFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        state = os.path.join(current.checkpoint.directory, "state")
        if current.retry_count == 0:
            for count in range(SAVES):
                with open(f"{state}.new", "w") as file:
                    file.write(str(count))
                os.replace(f"{state}.new", state)
                current.checkpoint.save(metadata={"count": count})
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(6000):  # Training goes on; nobody has to look at a flag.
                time.sleep(0.01)
            raise AssertionError("It was not ended")
        with open(state) as file:
            self.loaded = file.read()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TerminatedFlow()
