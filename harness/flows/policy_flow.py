"""One step for each load policy; each tells what it found and saves which run it was."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step


def visit(fails):
    """Returns the text that was loaded; saves the run's id and attempt; fails at the first attempt if asked to."""
    state = os.path.join(current.checkpoint.directory, "state")
    loaded = None
    if current.checkpoint.is_loaded:
        with open(state) as file:
            loaded = file.read()
    else:
        assert os.listdir(current.checkpoint.directory) == []
        assert current.checkpoint.info is None
    with open(state, "w") as file:
        file.write(f"{current.run_id} {current.retry_count}")
    current.checkpoint.save()
    if fails and current.retry_count == 0:
        raise RuntimeError("The first attempt falls over")
    return loaded


class PolicyFlow(FlowSpec):
    fails = Parameter("fails", default=False, type=bool)
    breaks = Parameter("breaks", default=False, type=bool)

    @step
    def start(self):
        self.next(self.fresh, self.eager, self.none)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy="fresh")
    @step
    def fresh(self):
        self.loaded = visit(self.fails)
        self.next(self.join)

    @checkpoint(load_policy="eager")
    @step
    def eager(self):
        self.loaded = visit(False)
        self.next(self.join)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy="none")
    @step
    def none(self):
        self.loaded = visit(self.fails)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.last)

    @checkpoint(load_policy="eager")
    @step
    def last(self):
        self.loaded = visit(False)
        if self.breaks and not current.origin_run_id:
            raise RuntimeError("The run falls over and is resumed")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    PolicyFlow()
