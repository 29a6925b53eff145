"""Saves, fails, and goes on where it was; what each save held is told in its metadata."""

import hashlib
import os
import random

from metaflow import FlowSpec, checkpoint, current, retry, step

SAVES, FAILS_AFTER = 4, 2
#: More than one part, so much that it is worth a copy within the store, little; in bytes.
SIZES = {"large": 17 << 20, "frozen": 3 << 20, "deep/small": 1000}


class StoresFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        here = current.checkpoint
        self.resumed_after = here.info.metadata["number"] if here.is_loaded else None
        for number in range(0 if self.resumed_after is None else self.resumed_after + 1, SAVES):
            for name, size in SIZES.items():
                write(os.path.join(here.directory, name), number, size)
            self.reference = here.save(metadata={"number": number, "digests": digests(here.directory)})
            if number + 1 == FAILS_AFTER and current.retry_count == 0:
                raise ValueError("The user's own error")
        self.next(self.end)

    @checkpoint
    @step
    def end(self):
        current.checkpoint.load(self.reference, "elsewhere")
        self.last = digests("elsewhere")


def write(path, number, size):
    """A new content, but for what is frozen."""
    if path.endswith("frozen") and os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "wb") as file:
        file.write(random.Random(f"{number} {path}").randbytes(size))
    os.replace(f"{path}.new", path)


def digests(folder):
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    return found


if __name__ == "__main__":
    StoresFlow()
