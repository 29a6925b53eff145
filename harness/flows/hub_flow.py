"""Keeps a repository of the Hub in the datastore, as metaflow-checkpoint's ``@huggingface_hub`` does."""

import os

from metaflow import FlowSpec, current, huggingface_hub, step


class HubFlow(FlowSpec):
    @huggingface_hub(cache_scope=os.environ["CACHE_SCOPE"])
    @step
    def start(self):
        self.kept = current.huggingface_hub.snapshot_download(repo_id="somebody/tiny")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    HubFlow()
