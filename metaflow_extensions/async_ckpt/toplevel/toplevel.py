"""What ``from metaflow import ...`` gives."""

from async_ckpt import __version__

from ..plugins.checkpoint import Checkpoint
from ..precedence import take_export

__mf_extensions__ = "async_ckpt"
__all__ = ["Checkpoint", "__mf_extensions__", "__version__"]

take_export("Checkpoint", Checkpoint)
del take_export  # Metaflow exports every name that is left here.
