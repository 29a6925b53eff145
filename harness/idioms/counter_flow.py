"""The counter of Metaflow's documentation ("Checkpointing progress"), with bad luck at known places."""

import os

from metaflow import FlowSpec, checkpoint, current, retry, step
from seen import saw

OPTIONS = {"load_policy": os.environ["LOAD_POLICY"]} if "LOAD_POLICY" in os.environ else {}
RETRIES = int(os.environ.get("RETRIES", "2"))
#: attempt → the count at which it fails.
BAD_LUCK = {0: 3, 1: 7}


class CheckpointCounterFlow(FlowSpec):
    @step
    def start(self):
        self.counter = 0
        self.next(self.flaky_count)

    @checkpoint(**OPTIONS)
    @retry(times=RETRIES, minutes_between_retries=0)
    @step
    def flaky_count(self):
        cp_path = os.path.join(current.checkpoint.directory, "counter")

        def _save_counter():
            with open(cp_path + ".new", "w") as f:
                f.write(str(self.counter))
            os.replace(cp_path + ".new", cp_path)
            self.latest_checkpoint = current.checkpoint.save()

        def _load_counter():
            if current.checkpoint.is_loaded:
                with open(cp_path) as f:
                    self.counter = int(f.read())

        _load_counter()
        saw("counter", [current.retry_count, current.checkpoint.is_loaded, self.counter])
        if current.checkpoint.is_loaded:
            info = current.checkpoint.info
            saw("info", [info.attempt, info.name, info.version_id, info.metadata, info.size])

        while self.counter < 10:
            self.counter += 1
            if self.counter % 2 == 0:
                _save_counter()
            if not current.origin_run_id and BAD_LUCK.get(current.retry_count) == self.counter:
                raise Exception("Bad luck! Try again!")

        self.next(self.end)

    @step
    def end(self):
        saw("end", [self.counter, os.path.basename(self.latest_checkpoint["key"]).split(".")[1:]])


if __name__ == "__main__":
    CheckpointCounterFlow()
