"""A gang in which the control node alone saves, as the public DDP example does, and which fails once."""

from metaflow import Checkpoint, FlowSpec, checkpoint, current, parallel, retry, step
from seen import saw, tree, write


class GangFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @parallel
    @step
    def train(self):
        node = current.parallel.node_index
        saw(f"node {node}", [current.retry_count, current.checkpoint.is_loaded, tree(current.checkpoint.directory)])
        self.node = node
        if node == 0:
            write(current.checkpoint.directory, {"model": f"attempt {current.retry_count}"})
            self.reference = current.checkpoint.save(name="model", metadata={"epoch": 1})
            if current.retry_count == 0:
                raise RuntimeError("The gang fails once")
        self.next(self.join)

    @step
    def join(self, inputs):
        control = next(task for task in inputs if task.node == 0)
        self.reference = control.reference
        with Checkpoint() as into:
            into.load(self.reference)
            saw("joined", [tree(into.directory), self.reference["name"], self.reference["attempt"]])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GangFlow()
