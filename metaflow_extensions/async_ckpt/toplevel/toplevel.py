"""What ``from metaflow import ...`` gives."""

from async_ckpt import __version__
from async_ckpt.task.reference import LoadedInfo

from ..plugins.checkpoint import Checkpoint, wait_until_stored
from ..precedence import before_reading, datastructures, take_export

__mf_extensions__ = "async_ckpt"
__all__ = ["Checkpoint", "__mf_extensions__", "__version__"]

take_export("Checkpoint", Checkpoint)
before_reading(wait_until_stored)
LoadedInfo.kept_as = getattr(datastructures(), "CheckpointArtifact", None)
# Metaflow exports every name that is left here.
del LoadedInfo, before_reading, datastructures, take_export, wait_until_stored
