"""Steps that end badly, each in its own way and each after a save."""

import os
import sys
import time

from metaflow import FlowSpec, catch, checkpoint, current, retry, step, timeout


def save(text):
    with open(os.path.join(current.checkpoint.directory, "state"), "w") as file:
        file.write(text)
    return current.checkpoint.save(metadata={"state": text})


class TroubleFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.exhausted, self.slow, self.leaves)

    @catch(var="error", print_exception=False)
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def exhausted(self):
        self.loaded = current.checkpoint.is_loaded
        save(f"attempt {current.retry_count}")
        raise KeyError(f"the user's own error {current.retry_count}")
        self.next(self.join)

    @catch(var="error", print_exception=False)
    @timeout(seconds=3)
    @checkpoint
    @step
    def slow(self):
        save("before the time-out")
        time.sleep(100)
        self.next(self.join)

    @catch(var="error", print_exception=False)
    @checkpoint
    @step
    def leaves(self):
        save("before sys.exit(3)")
        sys.exit(3)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.errors = {}
        for name in ("exhausted", "slow", "leaves"):
            error = getattr(inputs, name).error
            self.errors[name] = [getattr(error, "type", None), getattr(error, "exception", None)]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TroubleFlow()
