"""No step has @checkpoint: --with brings it. Each tells what it sees of it; "work" can fail at its first attempt."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, step


def apply_if(wanted, decorator):
    return decorator if wanted else lambda function: function


def visit(tell):
    """Saves which attempt this is; returns what was loaded, and the options as far as they can be seen."""
    here = current.checkpoint
    state = os.path.join(here.directory, "state")
    loaded = None
    if here.is_loaded:
        with open(state) as file:
            loaded = file.read()
    with open(f"{state}.new", "w") as file:
        file.write(f"{current.run_id} {current.retry_count}")
    os.replace(f"{state}.new", state)
    saved = here.save(metadata={"attempt": current.retry_count})
    prefix = "METAFLOW_ASYNC_CKPT_"
    return {
        "loaded": loaded,
        "format": saved["storage_format"],
        "directory": here.directory,
        **{name.lower(): os.environ.get(prefix + name) for name in tell},
    }


TELL = ("MAX_PENDING", "MAX_PENDING_BYTES", "ON_BACKLOG", "ON_FAILURE")


class UndecoratedFlow(FlowSpec):
    fails = Parameter("fails", default=False, type=bool)

    @step
    def start(self):
        self.seen = visit(TELL)
        self.next(self.work)

    @apply_if(os.environ.get("DECORATED"), checkpoint(load_policy="none", storage_format="tar", max_pending=7))
    @step
    def work(self):
        self.seen = visit(TELL)
        if self.fails and current.retry_count == 0:
            raise RuntimeError("The first attempt falls over")
        self.next(self.end)

    @step
    def end(self):
        self.seen = visit(TELL)


if __name__ == "__main__":
    UndecoratedFlow()
