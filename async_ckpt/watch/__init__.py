"""Saving the checkpoints of trainers that cannot be changed: a directory is looked at, and what is finished is saved.

``looking`` looks (at ``tree``s, with ``writers``, who still writes, and ``events``, which wake up), ``recogniser``
decides (pure), ``saving`` does what was decided, ``retention`` gives the disk back, ``watch`` is the thread that goes
round.
"""

from .options import MetadataFrom, WatchOptions
from .watch import Watch

__all__ = ["MetadataFrom", "Watch", "WatchOptions"]
