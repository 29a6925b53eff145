"""Saves while the store takes nothing, until it is told to go on."""

import os
import time

from metaflow import FlowSpec, checkpoint, current, step


class OnItsWayFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        with open(os.environ["GATE"], "w") as gate:
            gate.write("PUT,POST:hang")
        for name in ("first", "second"):
            with open(name, "w") as file:
                file.write(name)
            current.checkpoint.save(name, name=name)
        pathspec = f"{current.flow_name}/{current.run_id}/start/{current.task_id}"
        found = current.checkpoint.list(task=pathspec)
        self.listed = [[c.name, c.state in ("ADMITTED", "UPLOADING")] for c in found]
        with open("asked.new", "w") as file:
            file.write(pathspec)
        os.rename("asked.new", "asked")
        deadline = time.monotonic() + 60
        while not os.path.exists("go") and time.monotonic() < deadline:
            time.sleep(0.05)
        os.unlink(os.environ["GATE"])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OnItsWayFlow()
