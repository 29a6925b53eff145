"""Checkpoints in a store of their own, as the documentation of @with_artifact_store shows it."""

import os

from metaflow import FlowSpec, checkpoint, current, retry, step, with_artifact_store
from seen import saw, told, tree, write


@with_artifact_store(type="local", config=lambda: {"root": os.environ["ARTIFACTS"]})
class ArtifactStoreFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @step
    def start(self):
        saw("found", [current.retry_count, tree(current.checkpoint.directory)])
        write(".", {"my_file.txt": "Hello, World!"})
        self.external_bucket_checkpoint = current.checkpoint.save("my_file.txt")
        saw("saved", told(self.external_bucket_checkpoint))
        saw("url", self.external_bucket_checkpoint["url"].startswith(os.environ["ARTIFACTS"]))
        if current.retry_count == 0:
            raise RuntimeError("Once")
        self.next(self.end)

    @checkpoint(show_card=False)
    @step
    def end(self):
        current.checkpoint.load(self.external_bucket_checkpoint)
        saw("loaded in the next step", tree(current.checkpoint.directory))


if __name__ == "__main__":
    ArtifactStoreFlow()
