"""Counts, saves each number, and dies on the way where it is told to: its task is run again under the same number."""

import json
import os
import signal
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, current, step

SAVES, DIES_AFTER = int(os.environ.get("SAVES", "3")), int(os.environ.get("DIES_AFTER", "-1"))


class AgainFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        asked = None
        if "ASKED_FIRST" in os.environ:
            ask = "from metaflow import Checkpoint; print(Checkpoint().resume_path(), end='')"
            asked = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=True).stdout
        count, state = 0, os.path.join(current.checkpoint.directory, "count")
        if current.checkpoint.is_loaded:
            with open(state) as file:
                count = int(file.read())
        self.saved = []
        assert asked in (None, state), asked
        print("BEGAN", json.dumps({"from": count, "attempt": current.retry_count}), flush=True)
        for number in range(SAVES):
            if number == DIES_AFTER:
                current.checkpoint.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            with open(f"{state}.new", "w") as file:
                file.write(str(count))
            os.replace(f"{state}.new", state)
            reference = current.checkpoint.save(metadata={"count": count})
            self.saved.append(reference)
            print("SAVED", json.dumps({"count": count, "version": reference["version_id"]}), flush=True)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    AgainFlow()
