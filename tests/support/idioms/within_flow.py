"""A cache of the namespace's checkpoints, as the public stable-diffusion example had it before its API changed."""

from metaflow import FlowSpec, checkpoint, current, step
from seen import outcome, saw, write


class WithinFlow(FlowSpec):
    @checkpoint(load_policy="none", show_card=False)
    @step
    def start(self):
        kind, found = outcome(lambda: list(current.checkpoint.list(name="pipeline", within_task=False)))
        saw("cached", [kind, len(found) if kind == "ok" else found[0]])
        write(current.checkpoint.directory, {"pipeline": "weights"})
        current.checkpoint.save(name="pipeline")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    WithinFlow()
