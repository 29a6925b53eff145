"""A step without decorators: @checkpoint comes by the command line, ``run --with checkpoint``."""

from metaflow import FlowSpec, current, step
from seen import saw, tree, write


class BareFlow(FlowSpec):
    @step
    def start(self):
        saw("found", [current.checkpoint.is_loaded, tree(current.checkpoint.directory)])
        write(current.checkpoint.directory, {"state": "saved"})
        current.checkpoint.save()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BareFlow()
