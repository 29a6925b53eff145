"""Reads from a store of checkpoints outside of the flow, as the documentation of @with_artifact_store shows it."""

from metaflow import Checkpoint, Flow, artifact_store_from
from seen import saw, told, tree

run = Flow("ArtifactStoreFlow").latest_run
with artifact_store_from(run=run), Checkpoint() as cp:
    latest = cp.list(task=run["start"].task)[0]
    cp.load(latest, "test-checkpoints")
saw("latest", told(latest))
saw("loaded", tree("test-checkpoints"))
