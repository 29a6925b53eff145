"""Saves three times while the store is closed, and is killed; a retry tells what it found and opens the store again."""

import os
import signal
import sys

if "--retry-count 1" in " ".join(sys.argv):
    # Nobody answers this attempt; the first one has to be answered, on however busy a machine.
    os.environ["METAFLOW_ASYNC_CKPT_CLAIM_WAIT_S"] = "1"

from metaflow import FlowSpec, checkpoint, current, retry, step


class KillFlow(FlowSpec):
    @retry(times=int(os.environ.get("RETRIES", "1")), minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        state = os.path.join(current.checkpoint.directory, "state")
        if current.retry_count == 0:
            with open(os.environ["GATE"], "w") as gate:
                gate.write(os.environ["RULE"])
            for count in range(3):
                with open(state, "w") as file:
                    file.write(str(count))
                current.checkpoint.save(metadata={"count": count})
            os.kill(os.getpid(), signal.SIGKILL)

        with open(state) as file:
            self.loaded = file.read()
        self.reference = current.checkpoint.save(metadata={"count": 3})
        self.state_while_closed = self.reference.state
        os.unlink(os.environ["GATE"])
        self.all = current.checkpoint.list()
        current.checkpoint.load(self.all[2], "elsewhere")
        with open("elsewhere/state") as file:
            self.loaded_by_reference = file.read()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    KillFlow()
