"""A watch that can save nothing: its directory never comes."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, step

OPTIONS = json.loads(os.environ.get("CKPT_OPTIONS", "{}"))


class WatchTroubleFlow(FlowSpec):
    @checkpoint(**OPTIONS)
    @step
    def start(self):
        current.checkpoint.watch("no-such-directory")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    WatchTroubleFlow()
