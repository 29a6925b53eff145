"""Saves two checkpoints, in another working directory where ``MOVES`` is set; its second step loads ``OTHER``, a list
of references as JSON. Either package can run it.
"""

import json
import os
import tempfile

from metaflow import FlowSpec, checkpoint, current, step


class MovedFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        here = os.getcwd()
        if "MOVES" in os.environ:
            os.chdir(tempfile.mkdtemp())
        with open(os.path.join(current.checkpoint.directory, "state"), "w") as file:
            file.write(os.environ.get("TEXT", "moved"))
        self.saved = dict(current.checkpoint.save(name="files"))
        self.packed = dict(current.checkpoint.save(name="packed", storage_format="tar"))
        os.chdir(here)  # Metaflow itself would write its artifacts elsewhere.
        self.next(self.end)

    @checkpoint(show_card=False)
    @step
    def end(self):
        self.read = None
        if "OTHER" in os.environ:
            self.read = []
            for reference in json.loads(os.environ["OTHER"]):
                into = tempfile.mkdtemp()
                current.checkpoint.load(reference, into)
                with open(os.path.join(into, "state")) as file:
                    self.read.append(file.read())


if __name__ == "__main__":
    MovedFlow()
