"""Lists: of this task, of another, of the namespace; while the task runs, and of an attempt that was killed."""

import os
import signal

from metaflow import Checkpoint, FlowSpec, Task, checkpoint, current, retry, step
from seen import outcome, saw, told, write


def brief(entries):
    return [[entry["attempt"], entry["name"], entry["version_id"]] for entry in entries]


def attempts(pathspec, attempt):
    kind, found = outcome(Checkpoint().list, task=pathspec, attempt=attempt)
    return brief(found) if kind == "ok" else kind


class ListingFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @step
    def start(self):
        write(current.checkpoint.directory, {"state": str(current.retry_count)})
        for name in ("epoch", "best", "epoch"):
            current.checkpoint.save(name=name, metadata={"attempt": current.retry_count})
        if current.retry_count == 0:
            saw("first attempt", [told(entry) for entry in current.checkpoint.list()])
            os.kill(os.getpid(), signal.SIGKILL)
        # Between attempts the order is by version alone in metaflow-checkpoint.
        saw("of all attempts", sorted(brief(current.checkpoint.list())))
        saw("by name", sorted(brief(current.checkpoint.list(name="best"))))
        saw("by attempt", [brief(current.checkpoint.list(attempt=attempt)) for attempt in (0, 1, 5)])
        saw("Checkpoint().list()", sorted(brief(Checkpoint().list())))
        saw("newest first", brief(current.checkpoint.list())[0])
        self.pathspec = current.pathspec
        self.next(self.end)

    @checkpoint(show_card=False)
    @step
    def end(self):
        saw("of no checkpoints", [current.checkpoint.list(), current.checkpoint.list(full_namespace=True)])
        saw("of another task", brief(current.checkpoint.list(task=self.pathspec)))
        saw("of a Task", brief(current.checkpoint.list(task=Task(self.pathspec))))
        saw("of another task by name", brief(current.checkpoint.list(name="best", task=self.pathspec)))
        saw("entries", [isinstance(entry, dict) for entry in current.checkpoint.list(task=self.pathspec)])
        saw("of a Task's attempt", brief(Checkpoint().list(task=Task(self.pathspec, attempt=0))))
        saw("of a Task, attempt=0", brief(Checkpoint().list(task=Task(self.pathspec), attempt=0)))
        saw("of a pathspec, attempt=0", attempts(self.pathspec, 0))
        saw("of a pathspec, attempt='0'", attempts(self.pathspec, "0"))
        entries = Checkpoint().list(task=self.pathspec, as_dict=False)
        saw("as objects", [[e.attempt, e.name, e.version_id, e.metadata, e.size] for e in entries])
        saw("objects as dicts", [told(entry.to_dict()) for entry in entries])
        saw("of a task that is not there", outcome(Checkpoint().list, task="ListingFlow/1/start/1")[0])


if __name__ == "__main__":
    ListingFlow()
