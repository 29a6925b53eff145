"""Saves again and again, whatever the weather on the way to the store.

What is saved stands in ``$SCENE/saved``, a line of JSON each, with the digests of its files: for whoever compares them
with what is in the store, and so that others know how far it is.
"""

import hashlib
import json
import os
import random
import time

from metaflow import FlowSpec, checkpoint, current, retry, step

SCENE = os.environ.get("SCENE", ".")
SAVES = int(os.environ.get("SAVES", "10"))
#: Seconds after each save; and after some, when all is in the store: number -> seconds, as JSON.
PAUSE_S = float(os.environ.get("PAUSE_S", "0"))
PAUSES = json.loads(os.environ.get("PAUSES", "{}"))
#: Of the largest file of the save in the middle; of others.
LARGE, MEDIUM, SMALL = 36 << 20, 300 << 10, 1000


class WeatherFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        with open(os.path.join(SCENE, "started"), "a"):
            pass
        while os.path.exists(os.path.join(SCENE, "wait")):
            time.sleep(0.02)
        loaded = current.checkpoint.is_loaded
        for number in range(current.checkpoint.info.metadata["number"] + 1 if loaded else 0, SAVES):
            digests = {
                "weights": write(number, "weights", LARGE if number == SAVES // 2 else MEDIUM),
                "optimizer": write(number, "optimizer", MEDIUM),
                "deep/step": write(number, "deep/step", SMALL),
            }
            with open(os.path.join(SCENE, "saved"), "a") as file:
                file.write(json.dumps({"number": number, "files": digests}) + "\n")
            current.checkpoint.save(metadata={"number": number})
            time.sleep(PAUSE_S)
            if str(number) in PAUSES:
                current.checkpoint.flush()  # Or uploads that are behind would go on in the pause.
                time.sleep(PAUSES[str(number)])
        self.next(self.end)

    @step
    def end(self):
        pass


def write(number, name, size):
    """A new file, under a temporary name and renamed, as careful trainers do; returns its digest."""
    path = os.path.join(current.checkpoint.directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    data = random.Random(f"{number} {name}").randbytes(size)
    with open(f"{path}.new", "wb") as file:
        file.write(data)
    os.replace(f"{path}.new", path)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    WeatherFlow()
