"""PyTorch's distributed checkpoints (``torch.distributed.checkpoint``, DCP) as checkpoints of a step.

    writer = StoreWriter(metadata={"step": step})
    dcp.save(state, storage_writer=writer)
    dcp.async_save(state, storage_writer=writer)   # in a thread, or in a process
    dcp.load(state, storage_reader=StoreReader(key))

A storage writer of torch (``FileSystemWriter`` unless another one is named) writes each rank's files into a new
directory on the spool's disk. What becomes of them then:

- Where all ranks are on one machine, nothing is saved before every rank has written everything: then rank 0 puts the
  files into one directory and saves it. A rank that dies, or fails, before that leaves no checkpoint.
- In a gang, where each node has a disk of its own, every rank saves its directory as its part of one collective
  checkpoint, rank 0 with the metadata of all, after every rank has saved. It is visible once all parts are stored.

The new directory is never written to again, so files of any size are captured as links.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter, StorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult

from ..errors import CheckpointError, SpoolError, UsageError, os_hint, os_reason
from ._dcp_reader import TRIED, StoreReader, remove_at_last
from ._task import check_version, checkpoints, is_one_machine, never_rewritten, new_directory

__all__ = ["StoreReader", "StoreWriter"]

#: Goes before a rank's results: where it has written its files.
_PLACE = MetadataIndex("async_ckpt: directory")

#: A save stays in its thread from its beginning to its end.
_of_thread = threading.local()

#: In a gang: rank 0 has not saved its part of a checkpoint of which other parts may be saved.
_incomplete = threading.Event()


class _Saving:
    """One save of one rank: its directory, and torch's writer into it. The directory goes with this object."""

    def __init__(self, kind: Any, options: Mapping[str, Any], name: str) -> None:
        self.name, self.apart, parent = name, False, new_directory()
        self.remove = remove_at_last(self, parent)
        # A folder that nobody else has, as what is said of its files is kept by their paths.
        self.directory = os.path.join(parent, "dcp")
        os.mkdir(self.directory)
        self.writer = kind(self.directory, **options)
        # What is saved survives the death of processes without that, and the store is what survives the machine.
        self.writer.sync_files = False


class StoreWriter(StorageWriter):  # type: ignore[misc]
    """Saves what ``dcp.save`` and ``dcp.async_save`` write as a checkpoint of this step.

    ``dcp.save`` returns when the checkpoint is on this machine's disk, and the upload goes on in the background; so
    does the future of ``dcp.async_save`` become done. What ``dcp.save`` returns, and the future's result, has the
    checkpoint's key on all ranks: ``.storage_meta.checkpoint_id``. Of several saves at a time, each needs a process
    group of its own; one writer will do for all.

    Parameters
    ----------
    kind : type
        The writer of torch that writes the files: ``FileSystemWriter``, or ``HuggingFaceStorageWriter`` for
        safetensors.
    name : str
        Of the checkpoint; ``checkpoint_id=`` of a save counts before it.
    metadata : dict, optional
        Values to keep with the checkpoint; you may set the attribute between saves. In a gang all ranks give the same.
    latest : bool
        Whether a retry loads it by itself.
    options
        What ``kind`` takes, without the path: ``thread_count``, ``single_file_per_rank`` and so on.

    Attributes
    ----------
    reference : Reference or None
        What rank 0 has saved last in this process: ``reference.wait()`` waits until it is in the store.

    Raises
    ------
    UsageError
        In a save: this process belongs to no step with ``@checkpoint``; ``use_collectives=False``; the name.
    SpoolError
        In a save: the disk. On one machine the checkpoints before it are as they were, and the next save may succeed.
    """

    def __init__(
        self,
        kind: Any = FileSystemWriter,
        *,
        name: str = "mfchckpt",
        metadata: Mapping[str, Any] | None = None,
        latest: bool = True,
        **options: Any,
    ) -> None:
        check_version("torch", torch.__version__, *TRIED)
        self.kind, self.name, self.metadata, self.latest, self.options = kind, name, metadata, latest, options
        self.reference: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """What ``async_save`` sends to its process."""
        return {**vars(self), "reference": None}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        _of_thread.name = checkpoint_id

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        given = vars(_of_thread).pop("name", None)
        name = self.name if given is None else given
        if not kwargs.get("use_collectives", True):
            raise UsageError(
                "use_collectives=False writes a checkpoint for each rank, and there would be none of all",
                hint="Leave it out",
            )
        checkpoints().generate_key(name)  # Raises if nothing can be saved here, or under this name.
        if is_coordinator and _incomplete.is_set():
            raise UsageError(
                "A save before this one has failed on some ranks of the gang, or is still under way: nobody could tell "
                "which parts belong together",
                hint="Wait for each save before the next one. After one that failed, let the step be retried",
            )
        if (before := getattr(_of_thread, "saving", None)) is not None:
            before.remove()  # Another rank has failed, so nobody took it.
        _of_thread.saving = saving = _Saving(self.kind, self.options, name)
        saving.writer.set_up_storage_writer(is_coordinator, *args, **kwargs)

    def prepare_local_plan(self, plan: Any) -> Any:
        return self._saving.writer.prepare_local_plan(plan)

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        plans = self._saving.writer.prepare_global_plan(plans)
        if len(plans) > 1 and not is_one_machine():
            if getattr(self._saving.writer, "enable_consolidation", False):
                raise UsageError(
                    "enable_consolidation=True needs the files of all ranks on one machine: these are nodes of a gang",
                    hint="Leave it out; torch can consolidate what is loaded",
                )
            _incomplete.set()
        # With a planner that keeps its plans, a rank may get the one it had before: it is the same in each save.
        return [dataclasses.replace(plan, storage_data=(len(plans), plan.storage_data)) for plan in plans]

    def write_data(self, plan: Any, planner: Any) -> Any:
        saving = self._saving
        world, data = plan.storage_data
        saving.apart = world > 1 and not is_one_machine()
        written: torch.futures.Future[list[Any]] = torch.futures.Future()
        try:
            with _disk_errors(saving.directory):
                results = saving.writer.write_data(dataclasses.replace(plan, storage_data=data), planner).wait()
            if saving.apart and saving.writer.rank != 0:
                self._save(saving, saving.writer.rank, world)
        except BaseException:
            saving.remove()
            raise
        written.set_result([WriteResult(_PLACE, 0, saving.directory), *results])
        return written

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        saving = self._saving
        try:
            with _disk_errors(saving.directory):
                if not saving.apart:
                    for rank, (place, *_) in enumerate(results):
                        _move(place.storage_data, saving.directory, rank)
                saving.writer.finish(metadata, [of_rank[1:] for of_rank in results])
            reference = self._save(saving, saving.writer.rank, len(results))
        finally:
            saving.remove()
        _incomplete.clear()
        self.reference = reference
        metadata.storage_meta = StorageMeta(checkpoint_id=reference["key"], save_id=str(uuid.uuid4()))

    def _save(self, saving: _Saving, rank: int, world: int) -> Any:
        together = {"collective": True, "rank": rank, "world_size": world} if saving.apart else {}
        never_rewritten(saving.directory)
        return checkpoints().save(
            path=saving.directory, name=saving.name, metadata=self.metadata, latest=self.latest, **together
        )

    @property
    def _saving(self) -> _Saving:
        saving: _Saving = _of_thread.saving
        return saving

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can be the name of a checkpoint, as far as that is soon told."""
        return "/" not in os.fspath(checkpoint_id)


def _move(source: str, target: str, rank: int) -> None:
    """Take over what a rank has written."""
    if source == target:
        return
    if not os.path.isdir(source):
        raise UsageError(
            f"What rank {rank} has written is not on this machine", where=source,
            hint="Ranks on several machines save together in a gang: @parallel",
        )  # fmt: skip
    for folder, _, files in os.walk(source):
        into = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(into, exist_ok=True)
        for name in files:
            if os.path.exists(path := os.path.join(into, name)):
                raise UsageError(
                    f"Rank {rank} and one before it have both written {os.path.relpath(path, target)!r}",
                    hint="HuggingFaceStorageWriter needs save_distributed=True where several ranks write",
                )
            os.rename(os.path.join(folder, name), path)


@contextlib.contextmanager
def _disk_errors(where: str) -> Iterator[None]:
    """Make an error of what the disk refuses to torch's writer."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise SpoolError(
            f"The checkpoint could not be written: {os_reason(error)}", where=where, hint=os_hint(error)
        ) from error
