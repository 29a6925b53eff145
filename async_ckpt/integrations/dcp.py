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

import dataclasses
import os
import shutil
import threading
import uuid
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult

from ..errors import CheckpointError, NotFound, SpoolError, UsageError, os_hint, os_reason
from ._task import check_version, checkpoints, is_one_machine, new_directory, reader

#: The versions of torch with which the tests were run.
TRIED = "2.13", "2.13"

#: Goes before a rank's results: where it has written its files.
_PLACE = MetadataIndex("async_ckpt: directory")


#: A save stays in its thread from its beginning to its end.
_of_thread = threading.local()

#: In a gang: rank 0 has not saved its part of a checkpoint of which other parts may be saved.
_incomplete = threading.Event()


class _Saving:
    """One save of one rank: its directory, and torch's writer into it. The directory goes with this object."""

    def __init__(self, kind: Any, options: Mapping[str, Any], name: str) -> None:
        self.name, self.directory, self.apart = name, new_directory(), False
        self.remove = weakref.finalize(self, _remove, self.directory, os.getpid())
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
            _incomplete.set()
        # With a planner that keeps its plans, a rank may get the one it had before: it is the same in each save.
        return [dataclasses.replace(plan, storage_data=(len(plans), plan.storage_data)) for plan in plans]

    def write_data(self, plan: Any, planner: Any) -> Any:
        saving = self._saving
        world, data = plan.storage_data
        saving.apart = world > 1 and not is_one_machine()
        written: torch.futures.Future[list[Any]] = torch.futures.Future()
        try:
            results = saving.writer.write_data(dataclasses.replace(plan, storage_data=data), planner).wait()
            if saving.apart and saving.writer.rank != 0:
                self._save(saving, saving.writer.rank, world)
        except BaseException as error:
            saving.remove()
            raise _what_the_disk_says(error, saving.directory) from error
        written.set_result([WriteResult(_PLACE, 0, saving.directory), *results])
        return written

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        saving = self._saving
        try:
            if not saving.apart:
                for rank, (place, *_) in enumerate(results):
                    _move(place.storage_data, saving.directory, rank)
            saving.writer.finish(metadata, [of_rank[1:] for of_rank in results])
            reference = self._save(saving, saving.writer.rank, len(results))
        except OSError as error:
            raise _what_the_disk_says(error, saving.directory) from error
        finally:
            saving.remove()
        _incomplete.clear()
        self.reference = reference
        metadata.storage_meta = StorageMeta(checkpoint_id=reference["key"], save_id=str(uuid.uuid4()))

    def _save(self, saving: _Saving, rank: int, world: int) -> Any:
        together = {"collective": True, "rank": rank, "world_size": world} if saving.apart else {}
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


class StoreReader(StorageReader):  # type: ignore[misc]
    """Loads a checkpoint that ``StoreWriter`` saved, with any number of ranks, and a directory with such files.

    Each rank loads only the files it needs, and removes them when it has read them. Their digests are checked. What is
    still on its way to the store is loaded from this machine's disk.

    Parameters
    ----------
    reference : dict, str or PathLike, optional
        What a save returned, an entry of ``list()``, a key, a name (then the newest checkpoint of this task of that
        name), or a directory. ``checkpoint_id=`` of a load counts before it. Default: what this attempt resumes from.
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
            self._remove = weakref.finalize(self, _remove, directory, os.getpid())
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
    if os.path.isdir(text):
        return None, text
    if "/" in text:
        return text, ""
    found = reader().list(name=text)
    if not found:
        raise NotFound(f"This task has saved no checkpoint of the name {text!r}", hint="Give a name, a key or a dict")
    return found[0], ""


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # Not a forked child, which drops its copy of an object.
        shutil.rmtree(directory, ignore_errors=True)


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
            os.rename(os.path.join(folder, name), os.path.join(into, name))


def _what_the_disk_says(error: BaseException, where: str) -> BaseException:
    """Of what a writer of torch raised, the error of the disk, if it was one."""
    if isinstance(error, OSError) and not isinstance(error, CheckpointError):
        return SpoolError(f"The checkpoint could not be written: {os_reason(error)}", where=where, hint=os_hint(error))
    return error
