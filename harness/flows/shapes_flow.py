"""Saves the directories that SHAPES names, each as files and as a tar."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, step


class ShapesFlow(FlowSpec):
    @checkpoint(**json.loads(os.environ.get("OPTIONS", "{}")))
    @step
    def start(self):
        self.saved = [
            current.checkpoint.save(path, name=f"{name}.{storage_format}", storage_format=storage_format)
            for name, path in json.loads(os.environ["SHAPES"]).items()
            for storage_format in ("files", "tar")
        ]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ShapesFlow()
