"""A cell of a notebook, as in Metaflow's documentation: "Loading checkpoints outside flows"."""

import os

from metaflow import Checkpoint, Flow, Task
from seen import saw, told, tree

with Checkpoint() as cp:
    run = Flow("CheckpointCounterFlow").latest_run
    latest = cp.list(task=run["flaky_count"].task)[0]
    cp.load(latest)
    with open(os.path.join(cp.directory, "counter")) as f:
        saw("latest", [f.read(), told(latest)])
    directory = cp.directory
saw("directory", [os.path.exists(directory), cp.directory])

task = run["flaky_count"].task
saw("by pathspec", [told(entry) for entry in Checkpoint().list(task=task.pathspec)])
for attempt in (0, 1, 2):
    earlier = Task(task.pathspec, attempt=attempt)
    saw("of an attempt", [told(entry) for entry in Checkpoint().list(task=earlier)])
saw("_task_checkpoints", [told(entry) for entry in task["_task_checkpoints"].data])
saw("_task_latest_checkpoint", told(task["_task_latest_checkpoint"].data))

Checkpoint().load(latest["key"], path="by-key")
saw("by key", tree("by-key"))
