"""Its task is killed after two saves, and nothing is left of it but what is in the store."""

import os
import signal

from metaflow import FlowSpec, checkpoint, current, step
from seen import saw, write


class KilledFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        saw("pathspec", current.pathspec)
        for number in range(2):
            write(current.checkpoint.directory, {"state": str(number)})
            reference = current.checkpoint.save(metadata={"number": number})
        if hasattr(reference, "wait"):
            reference.wait()
        os.kill(os.getpid(), signal.SIGKILL)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    KilledFlow()
