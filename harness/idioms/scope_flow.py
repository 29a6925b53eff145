"""What a first attempt finds of earlier runs, by policy, namespace and tag; and a cache of other runs' checkpoints."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, step
from seen import outcome, saw, tree, write

POLICY = os.environ.get("LOAD_POLICY", "eager")


class ScopeFlow(FlowSpec):
    number = Parameter("number", default=0)

    @checkpoint(load_policy=POLICY, show_card=False)
    @step
    def start(self):
        info = current.checkpoint.info
        saw("found", [current.checkpoint.is_loaded, tree(current.checkpoint.directory), info and info.metadata])
        cached = current.checkpoint.list(name="cache", full_namespace=True)
        saw("cached", sorted(c["metadata"]["number"] for c in cached))
        kind, cached = outcome(lambda: list(current.checkpoint.list(name="cache", within_task=False)))
        saw("within_task=False", [c["metadata"]["number"] for c in cached] if kind == "ok" else cached[0])
        saw("of this task", len(current.checkpoint.list(name="cache")))
        write(current.checkpoint.directory, {"state": f"run {self.number}"})
        current.checkpoint.save(name="cache", metadata={"number": self.number}, latest=False)
        write(current.checkpoint.directory, {"more": "of it"})
        current.checkpoint.save(metadata={"number": self.number})
        write(current.checkpoint.directory, {"state": "not the latest"})
        current.checkpoint.save(name="aside", latest=False)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ScopeFlow()
