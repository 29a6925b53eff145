"""Saving the checkpoints of trainers that cannot be changed: a directory is watched, and what is finished is saved.

- ``watch`` is the thread: it looks, decides, saves and waits; ``options`` is what it is told.
- ``scan`` looks, and ``events`` wake it up. ``names`` and ``group`` say what an entry of the directory is, ``entry``
  what is known of one.
- ``recogniser`` decides which entries are finished, and ``gone`` which ones were before they went. Both are pure.
- ``early_capture`` captures before that is known, ``entry_saver`` saves, ``already_saved`` knows what was saved before,
  ``metadata_file`` reads a trainer's JSON, ``retention`` gives back the disk.
- ``explanation`` says why nothing was saved.
"""

import logging

from .options import MetadataFrom, WatchOptions
from .watch import Watch

__all__ = ["MetadataFrom", "Watch", "WatchOptions"]


class _Prefix(logging.Filter):
    """Lets people see which lines come from a watch. All modules here log to this package's logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        # File names may hold anything, but a line is text that can be written.
        record.msg = f"watch: {record.msg}".encode("utf-8", "backslashreplace").decode()
        return True


logging.getLogger(__name__).addFilter(_Prefix())
