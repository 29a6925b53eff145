"""Saves checkpoints of every kind, and first of all reads those of the run before, which another environment wrote."""

import os

from cases import CASES, METADATA, content
from metaflow import Checkpoint, FlowSpec, Task, checkpoint, current, retry, step
from seen import outcome, saw, told, tree, write


def read(entry, other):
    """How the loads of one checkpoint come out: by the entry, and by its key alone."""
    found = []
    for reference in (entry, entry["key"]):
        with Checkpoint() as into:
            result, error = outcome(into.load, reference)
            found.append(tree(into.directory) if result == "ok" else error[0])
    saw(f"read {other}", [entry["name"], entry["storage_format"], *found])


def read_task(pathspec):
    """Everything that other programs read of a task's checkpoints."""
    task = Task(pathspec, _namespace_check=False)
    listed = Checkpoint().list(task=pathspec)
    saw("listed", [told(entry) for entry in listed])
    saw("listed by name", {n: len(Checkpoint().list(name=n, task=task)) for n in ("mfchckpt", "modèle-日本", "nobody")})
    saw("listed by attempt", [[e["name"] for e in Checkpoint().list(task=task, attempt=a)] for a in (0, 1)])
    saw("_task_checkpoints", [told(entry) for entry in task["_task_checkpoints"].data])
    saw("_task_latest_checkpoint", told(task["_task_latest_checkpoint"].data))
    for entry in listed:
        read(entry, "listed")
    with Checkpoint() as into:
        into.load(task["latest_checkpoint"].data)
        saw("latest_checkpoint", tree(into.directory))
    with Checkpoint() as into:
        into.load(task["_task_latest_checkpoint"].data)
        saw("the latest of the task", tree(into.directory))


class CrossingFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy="eager", show_card=False)
    @step
    def start(self):
        writer = os.environ["WRITER"]
        if current.retry_count == 0:
            info = current.checkpoint.info
            saw("eager", [tree(current.checkpoint.directory), info and [info.name, info.metadata]])
            if "OTHER" in os.environ:
                other = os.environ["OTHER"]
                of_the_other = [c for c in current.checkpoint.list(full_namespace=True) if c["pathspec"] == other]
                saw(
                    "in the namespace",
                    sorted([int(c["attempt"]), c["name"], c["storage_format"]] for c in of_the_other),
                )
                read_task(other)
            write("out", content(writer, "of attempt 0"))
            current.checkpoint.save("out", name="before the error")
            raise RuntimeError("The first attempt of each writer fails")
        saw("resumed", [current.checkpoint.info.name, tree(current.checkpoint.directory)])
        for number, (name, storage_format, what) in enumerate(CASES):
            write("out", content(writer, number))
            path = "out" if what == "a directory" else os.path.join("out", "state.json")
            self.latest_checkpoint = current.checkpoint.save(
                path, name=name, metadata={**METADATA, "number": number}, storage_format=storage_format
            )
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CrossingFlow()
