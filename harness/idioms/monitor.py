"""A model in progress, looked at from outside: ``python monitor.py <pathspec>``; there are no artifacts yet."""

import sys

from metaflow import Checkpoint, Task
from seen import outcome, saw, told, tree

pathspec = sys.argv[1]
listed = Checkpoint().list(task=Task(pathspec, _namespace_check=False))
saw("listed", [told(entry) for entry in listed])
for entry in listed:
    with Checkpoint() as into:
        into.load(entry)
        saw("loaded", tree(into.directory))
saw("by another name", Checkpoint().list(task=pathspec, name="other"))
saw("without a task", "ValueError" in outcome(Checkpoint().list)[1])
saw("of the namespace", outcome(Checkpoint().list, task=pathspec, full_namespace=True)[0])
saw("save outside of a task", outcome(Checkpoint().save, __file__)[0])
