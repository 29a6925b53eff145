"""What was added to the metadata of checkpoints after their save, and is not in the store yet: one file for each call
in ``annotations/``, ``<id>~<time>-<random>.json``. It survives any process, and the agent has it written.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..manifest import dump
from ..system.files import write_new
from .directories import private_subdirectory, spool_errors
from .spool_directory import SpoolDirectory

_FOLDER = "annotations"


class Annotation(NamedTuple):
    """One.

    Parameters
    ----------
    name : str
        Of its file.
    id : str
        Of the checkpoint in this spool.
    key, pathspec : str
        Of the checkpoint.
    metadata : dict
        What is added; plain JSON.
    """

    name: str
    id: str
    key: str
    pathspec: str
    metadata: dict[str, Any]


class Annotations:
    """Those of one spool."""

    def __init__(self, spool: SpoolDirectory) -> None:
        self._spool = spool

    def add(self, identity: str, reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Write one down. After this returns it survives the death of any process.

        Raises
        ------
        SpoolError
            It cannot be written.
        """
        folder = self._spool.path(_FOLDER)
        with spool_errors("What was added to a checkpoint's metadata cannot be written down", folder):
            private_subdirectory(folder)
            mark = f"{time.time_ns():020}-{secrets.token_hex(4)}"  # What is added later comes later.
            data = {
                "id": identity,
                "key": reference["key"],
                "pathspec": reference["pathspec"],
                "metadata": dict(metadata),
            }
            path = os.path.join(folder, f"{identity}~{mark}.json")
            write_new(path, dump(data), self._spool.path("staging", f"{self._spool.saver_names.own()}-{mark}.json"))

    def names(self) -> list[str]:
        """Names of the files, in no particular order."""
        try:
            return [name for name in os.listdir(self._spool.path(_FOLDER)) if name.endswith(".json")]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> Annotation | None:
        """One of them; None: it is gone, or makes no sense."""
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            open(self._spool.path(_FOLDER, name), "rb") as file,
        ):
            data = json.load(file)
            return Annotation(name, str(data["id"]), str(data["key"]), str(data["pathspec"]), dict(data["metadata"]))
        return None

    def drop(self, name: str) -> None:
        """It is in the store, or never will be."""
        with contextlib.suppress(OSError):
            os.unlink(self._spool.path(_FOLDER, name))
