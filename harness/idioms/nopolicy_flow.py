"""load_policy=None in a step that is retried: Metaflow's documentation says that nothing is loaded."""

from metaflow import FlowSpec, checkpoint, current, retry, step
from seen import saw, tree, write


class NoPolicyFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy=None, show_card=False)
    @step
    def start(self):
        saw("found", [current.retry_count, current.checkpoint.is_loaded, tree(current.checkpoint.directory)])
        if current.retry_count == 0:
            write(current.checkpoint.directory, {"state": "attempt 0"})
            current.checkpoint.save()
            raise RuntimeError("Once")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    NoPolicyFlow()
