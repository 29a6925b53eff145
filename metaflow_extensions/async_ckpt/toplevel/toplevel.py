"""What ``from metaflow import ...`` gives."""

from async_ckpt import __version__

from ..plugins.checkpoint import Checkpoint

__mf_extensions__ = "async_ckpt"
__all__ = ["Checkpoint", "__mf_extensions__", "__version__"]
