"""Saves once; @checkpoint's options, and what else happens, come from the environment."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step, timeout

OPTIONS = json.loads(os.environ.get("CKPT_OPTIONS", "{}"))
RETRIES = int(os.environ.get("RETRIES", "0"))
RAISES = os.environ.get("RAISES", "")
TIMEOUT_S = int(os.environ.get("TIMEOUT_S", "0"))


def apply_if(wanted, decorator):
    return decorator if wanted else lambda function: function


class SaveFlow(FlowSpec):
    @apply_if(TIMEOUT_S, timeout(seconds=TIMEOUT_S or 1))
    @apply_if(RETRIES, retry(times=RETRIES, minutes_between_retries=0))
    @checkpoint(**OPTIONS)
    @step
    def start(self):
        self.loaded = None
        state = os.path.join(current.checkpoint.directory, "state")
        if current.checkpoint.is_loaded:
            self.info = current.checkpoint.info.to_dict()
            with open(state) as file:
                self.loaded = file.read()
        print(f"Loaded: {self.loaded}")
        # Never in place: metaflow-checkpoint loads hard links into a local datastore, and writing to one would damage
        # what it loaded.
        with open(f"{state}.new", "w") as file:
            file.write(f"{current.run_id}, attempt {current.retry_count}")
        os.replace(f"{state}.new", state)
        os.makedirs(os.path.join(current.checkpoint.directory, "deep", "er"), exist_ok=True)
        nested = os.path.join(current.checkpoint.directory, "deep", "er", "file")
        if not os.path.exists(nested):
            with open(nested, "w") as file:
                file.write("nested")
        self.reference = current.checkpoint.save(name="model", metadata={"attempt": current.retry_count})
        if RAISES == "always" or (RAISES == "once" and current.retry_count == 0):
            raise ValueError("The user's own error")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    SaveFlow()
