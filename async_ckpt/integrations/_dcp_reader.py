"""Loading with PyTorch's distributed checkpoints; see ``dcp.py``."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, StorageReader
from torch.distributed.checkpoint.metadata import Metadata

from ..errors import NotFound, UsageError
from ._task import check_version, checkpoints, new_directory, reader

#: The versions of torch with which the tests were run.
TRIED = "2.13", "2.13"


def remove_at_last(owner: object, directory: str) -> weakref.finalize[..., object]:
    """Removes a directory when it is called, or when ``owner`` is gone; a forked child, which has a copy, does not."""
    return weakref.finalize(owner, _remove, directory, os.getpid())


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # Not a forked child, which drops its copy of an object.
        shutil.rmtree(directory, ignore_errors=True)


class StoreReader(StorageReader):  # type: ignore[misc]
    """Loads a checkpoint that ``StoreWriter`` saved, with any number of ranks, and a directory with such files.

    Each rank loads only the files it needs, and removes them when it has read them. Their digests are checked. What is
    still on its way to the store is loaded from this machine's disk.

    Parameters
    ----------
    reference : dict, str or PathLike, optional
        What a save returned, an entry of ``list()``, a key, a name (then the newest checkpoint of this task of that
        name), or a directory: a ``Path``, or text with a ``/`` in it. ``checkpoint_id=`` of a load counts before it.
        Default: what this attempt resumes from.
    kind : type
        The reader of torch that reads the files: ``FileSystemReader``, or ``HuggingFaceStorageReader``.
    options
        What ``kind`` takes, without the path.

    Raises
    ------
    UsageError, NotFound, IntegrityError, StoreError
        In a load: there is nothing to resume from, or no such checkpoint; it is damaged. Torch puts their texts into
        an error of its own, which all ranks get.
    """

    def __init__(
        self,
        reference: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        kind: Any = FileSystemReader,
        **options: Any,
    ) -> None:
        check_version("torch", torch.__version__, *TRIED)
        self.reference, self.kind, self.options = reference, kind, options
        self._reader: Any = None
        #: Of what is being loaded; None: it is a directory that was there before.
        self._found: Any = None

    @property
    def _by_plan(self) -> bool:
        """Whether ``.metadata`` says in which files everything is."""
        return bool(self.kind.read_metadata is FileSystemReader.read_metadata)

    def reset(self, checkpoint_id: Any = None) -> None:
        if checkpoint_id is not None:
            self.reference = checkpoint_id

    def read_metadata(self) -> Metadata:
        self._found, directory = _find(self.reference)
        if self._found is not None:
            directory = new_directory()
            self._remove = remove_at_last(self, directory)
            files = [".metadata"] if self._by_plan else None
            reader().load(self._found, directory, files=files)
        self._reader = self.kind(directory, **self.options)
        return self._reader.read_metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._reader.set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)

    def prepare_local_plan(self, plan: Any) -> Any:
        return self._reader.prepare_local_plan(plan)

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        plans = self._reader.prepare_global_plan(plans)
        return list(plans)

    def read_data(self, plan: Any, planner: Any) -> Any:
        try:
            if self._found is not None and self._by_plan:
                stored = self._reader.storage_data
                files = sorted({stored[item.storage_index].relative_path for item in plan.items})
                reader().load(self._found, self._reader.path, files=files)
            return self._reader.read_data(plan, planner)
        finally:
            if self._found is not None:
                self._remove()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether it can name a checkpoint."""
        return bool(checkpoint_id)


def _find(reference: Any) -> tuple[Any, str]:
    """What is to be loaded, or else the directory where it is already."""
    if reference is None:
        if (path := checkpoints().resume_path()) is None:
            raise UsageError(
                "There is nothing to resume from: this attempt began without a checkpoint",
                hint="Ask resume_path() first: it is None then",
            )
        return None, path
    if isinstance(reference, Mapping):
        return reference, ""
    text = os.fspath(reference)
    if isinstance(reference, os.PathLike) or ("/" in text and os.path.isdir(text)):
        return None, text
    if "/" in text:
        return text, ""
    found = reader().list(name=text)
    if not found:
        raise NotFound(f"This task has saved no checkpoint of the name {text!r}", hint="Give a name, a key or a dict")
    return found[0], ""
