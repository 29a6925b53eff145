"""A notebook as metaflow-checkpoint's examples have it: lists a task's checkpoints and loads them by load_model."""

from metaflow import Checkpoint, Flow, load_model, namespace
from seen import saw, tree

namespace(None)
latest_run = Flow("ModelFlow").latest_successful_run
checkpoints = list(Checkpoint().list(task=latest_run["start"].task))
for number, entry in enumerate(checkpoints):
    load_model(entry, f"checkpoints/{number}")
    saw("load_model(entry)", [entry["name"], tree(f"checkpoints/{number}")])
load_model(latest_run["start"].task.data.trained, "model")
saw("load_model(model)", tree("model"))
