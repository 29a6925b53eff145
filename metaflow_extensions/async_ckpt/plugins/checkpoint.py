"""``from metaflow import Checkpoint`` and ``current.checkpoint``: Metaflow's words over ``task.checkpointer``."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from async_ckpt import layout
from async_ckpt.config import ENV_SPOOL, Config
from async_ckpt.errors import UsageError, WatchError
from async_ckpt.ranks import who
from async_ckpt.system.log import LOGGER
from async_ckpt.task.annotate import added, annotate_in
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.listed import CheckpointList
from async_ckpt.task.listing import list_many, list_task
from async_ckpt.task.loader import load_outside
from async_ckpt.task.lookup import with_default
from async_ckpt.task.query import chosen, conditions, names_of
from async_ckpt.task.reference import CheckpointInfo, LoadedInfo, Reference
from async_ckpt.watch import MetadataFrom, Watch, WatchOptions

from .artifact_store import store_in_context, stores_of_reference

if TYPE_CHECKING:
    from metaflow import Task

    from async_ckpt.state.reference import StateReference

log = logging.getLogger(LOGGER)

T = TypeVar("T")

TASK_LATEST_CHECKPOINT = "_task_latest_checkpoint"


class JsonList:
    """A list whose items are given as JSON. Its pickle is that of a plain list, which needs nothing of this package.

    The artifact with a task's checkpoints is one. Nobody reads it in the task, so thousands of items need not be parsed
    there.
    """

    def __init__(self, items: Iterable[bytes]) -> None:
        self._items = list(items)

    def __reduce__(self) -> tuple[Any, ...]:
        return json.loads, (b"[" + b",".join(self._items) + b"]",)


class _Checkpoints:
    """What ``Checkpoint`` and ``current.checkpoint`` share."""

    _checkpointer: Checkpointer | None = None

    @property
    def directory(self) -> str | None:
        raise NotImplementedError

    def _writer(self) -> Checkpointer:
        if self._checkpointer is None:
            self._checkpointer = Checkpointer.from_environment()
        return self._checkpointer

    def _save(self, path: str | os.PathLike[str] | None, **options: Any) -> Reference:
        target = path if path is not None else self.directory
        if target is None:
            raise UsageError(
                "There is nothing to save: no path was given", hint="Pass a path, or use Checkpoint(init_dir=True)"
            )
        return self._writer().save(target, **options)

    def list(
        self,
        name: str | None = None,
        task: Task | str | None = None,
        attempt: int | str | None = None,
        full_namespace: bool = False,
        as_dict: bool = True,
        within_task: bool | None = None,
        flow: str | None = None,
        run: str | None = None,
        step: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        sort: str = "",
    ) -> CheckpointList:
        """List checkpoints, newest first.

        Parameters
        ----------
        name : str, optional
            Only those of this name.
        task : Task or str, optional
            Another task, or its pathspec ``flow/run/step/task``: of its last attempt (of a ``Task`` made for one
            attempt, of that), unless ``attempt`` says which. One that ``resume`` cloned has those of its origin.
            Without ``task``, this task's, of all attempts.
        attempt : int or "all", optional
            Only those of this attempt, or of every one.
        full_namespace : bool, default False
            Those of this step in the namespace, from all runs; ``within_task=True`` or ``False`` is the opposite of it.
        as_dict : bool, default True
            Accepted for compatibility: what is returned is always a dict that has the fields as attributes as well.
        flow, run, step : str, optional
            Those of all tasks of a flow, of one of its runs (``run="Train/123"``, or ``flow`` and ``run``), of a step.
        metadata : dict, optional
            Only those whose metadata has this: ``{"loss": ("<", 0.3), "tag": "best"}``, with ``<``, ``<=``, ``>``,
            ``>=``, ``==``, ``!=``; in nested dicts ``"outer.inner"``.
        sort : str, optional
            By this name in the metadata (or field, such as ``"size"``) instead of by time; ``"-loss"``: the greatest
            first.

        Returns
        -------
        list of CheckpointInfo
            Dicts with a ``state``: ``COMMITTED``, or how far one that was saved on this machine and is still on its way
            has come.

        Raises
        ------
        UsageError
            No task is given and this process belongs to none; or the arguments are not valid, or contradict each other.
        NotFound
            There is no such task; says where was looked.
        StoreError
            The store, or Metaflow's metadata, cannot be read.
        """
        if within_task and full_namespace:
            raise UsageError("within_task=True and full_namespace=True contradict each other")
        within = not full_namespace if within_task is None else within_task
        name, wanted = layout.name_text(name), conditions(metadata)
        if flow is not None or run is not None or step is not None:
            if task is not None:
                raise UsageError("task and flow, run or step exclude each other", hint="A task has one pathspec")
            found = list_many(flow, run, step, name=name, attempt=attempt, first=store_in_context())
        elif task is not None:
            if not within:
                raise UsageError(
                    "The namespace of another task cannot be listed", hint="Leave out task or full_namespace"
                )
            found = list_task(task, name=name, attempt=attempt, first=store_in_context())
        else:
            found = self._writer().list(name=name, attempt=attempt, within_task=within)
        return CheckpointList(chosen(found, wanted, sort), names_of(wanted, sort))

    def latest(self, *args: Any, **options: Any) -> CheckpointInfo | None:
        """The first that ``list()`` with these arguments has: the newest, or by ``sort``; None where there is none.
        ``Checkpoint().latest(flow="Train", metadata={"loss": ("<", 0.3)})``.
        """
        return next(iter(self.list(*args, **options)), None)

    async def alist(self, *args: Any, **options: Any) -> CheckpointList:
        """``list()`` for asynchronous code: the event loop goes on meanwhile."""
        return await _in_thread(functools.partial(self.list, *args, **options))

    async def alatest(self, *args: Any, **options: Any) -> CheckpointInfo | None:
        """``latest()`` for asynchronous code."""
        return await _in_thread(functools.partial(self.latest, *args, **options))

    async def aload(self, *args: Any, **options: Any) -> str:
        """``load()`` for asynchronous code."""
        return await _in_thread(functools.partial(self.load, *args, **options))

    def load(self, *args: Any, **options: Any) -> str:
        raise NotImplementedError

    def annotate(
        self, reference: Mapping[str, Any] | str, metadata: Mapping[str, Any] | None = None, **values: Any
    ) -> CheckpointInfo:
        """Add to the metadata of any checkpoint in the store, after an evaluation elsewhere, say:
        ``Checkpoint().annotate(reference, accuracy=0.9)``. What has a name that is there already is replaced. It is in
        the store when this returns. (What ``save()`` returned has an ``annotate`` that does not wait.)

        Parameters
        ----------
        reference : dict or str
            As ``list()`` returned it, or its key.
        metadata, **values
            What is added; plain JSON.

        Raises
        ------
        UsageError
            There is nothing to add, or that is no reference.
        NotFound
            There is no such checkpoint in this task's store, or in the one that Metaflow is configured for.
        StoreError
            The store refuses, or is out of reach.
        """
        config = Config.from_env()
        own = self._writer().spool.store if self._is_in_task() else None
        places = with_default(store_in_context(), own)
        return CheckpointInfo(annotate_in(places, reference, added(metadata, values, config), config))

    def generate_key(self, name: str | None, version_id: int | None = None) -> str:
        """The key of a checkpoint of this task and attempt.

        Parameters
        ----------
        name : str
            Of the checkpoint; None for the default name.
        version_id : int, optional
            Its version. Default: that of the next ``save()``. It is not taken by this: if another process or thread of
            the task saves in between, that save has this version, and the next one a later one. Only what ``save()``
            returns is certain. Collective saves count for themselves.

        Raises
        ------
        UsageError, SpoolError
            There is no such name or version, or this process belongs to no task that runs.
        """
        return self._writer().next_key(name, version_id)

    def _load(
        self, reference: Any, path: str | os.PathLike[str], shard: str, clean: bool = False,
        files: Collection[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Load into a path; returns the metadata of what was loaded."""
        target = os.fsdecode(path)
        if not isinstance(reference, (str, Mapping)) and callable(getattr(reference, "to_dict", None)):
            reference = reference.to_dict()  # metaflow-checkpoint's CheckpointArtifact.
        if self._is_in_task():
            store = store_in_context()
            return self._writer().load(reference, target, shard=shard, clean=clean, files=files, first=store)
        return load_outside(stores_of_reference(reference), reference, target, shard=shard, clean=clean, files=files)

    def resume_path(self, pattern: str | None = None) -> str | None:
        """What a framework's own argument for resuming wants: the path of what this attempt begins with, or None.

        That is what the load policy loaded, or what ``current.checkpoint.load(reference)`` loaded since without a path.
        In all processes of a step on one machine it is the same path. Ranks that torchrun has started again get what
        was saved until then.

        Parameters
        ----------
        pattern : str, optional
            The one file or folder of it that fits, such as ``"*.ckpt"`` or ``"**/last.pt"``. Default: its only file, if
            it is a single file and nothing else, or else the directory with all of it.

        Returns
        -------
        str or None
            An absolute path; None where there is nothing to resume from.

        Raises
        ------
        UsageError
            None of it fits the pattern, or more than one do; the error names them. What was loaded is not there any
            more. Or this process belongs to no task that runs.
        SpoolError, StoreError, WaitTimeout
            What is to be loaded cannot be.
        """
        return self._writer().resumption.path(pattern)

    def resume_info(self) -> CheckpointInfo | None:
        """The metadata of what ``resume_path()`` leads to, as ``current.checkpoint.info`` has it, in all processes of a
        step; None where there is nothing to resume from.

        Raises
        ------
        UsageError, SpoolError, StoreError, WaitTimeout
            See ``resume_path``.
        """
        found = self._writer().resumption.info()
        return None if found is None else CheckpointInfo(found)

    def save_state(
        self,
        state: Any,
        name: str = layout.DEFAULT_NAME,
        metadata: Mapping[str, Any] | None = None,
        latest: bool = True,
        staging: str = "sync",
        max_host_bytes: int | None = None,
        pickle: bool = False,
        collective: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> StateReference:
        """Save the state of a training: its tensors are copied into memory that the agent's uploader reads. No file is
        written, and nothing is pickled. docs/state.md tells what survives what.

        Parameters
        ----------
        state : dict, list or tuple
            Nested, of tensors (torch, numpy) and plain values: ``{"model": model.state_dict(), "step": step, ...}``.
        name, metadata, latest, collective, rank, world_size
            As for ``save()``. Of a collective one each rank's state is its own.
        staging : "sync" or "async", default "sync"
            When this returns: when all is copied, or when the copies are under way. Then nobody may write to the
            tensors before ``staged()`` of what is returned. Optimizers of torch wait by themselves before their next
            step. A checkpoint of which a tensor was written to all the same is not saved, and fails the step at its
            end.
        max_host_bytes : int, optional
            The most memory to stage in. Default: ``METAFLOW_ASYNC_CKPT_MAX_HOST_BYTES``, or twice the largest state.
            What does not fit is staged on the spool's disk.
        pickle : bool, default False
            Pickle what is neither tensor nor plain value; else that is an error.

        Returns
        -------
        StateReference
            As ``save()`` returns, with ``staged()``.

        Raises
        ------
        UsageError
            The state holds what cannot be saved so; names it, and the way out. Nothing was copied.
        SnapshotError
            The state has changed while it was copied, or cannot be copied.
        SpoolError, BacklogError, StoreError
            As ``save()``: neither memory nor disk has room for it, and so on.
        """
        from async_ckpt.state.stager import state_saver  # Late: few tasks save states.

        return state_saver(self._writer()).save(
            state, name=name, metadata=metadata, latest=latest, staging=staging, max_host_bytes=max_host_bytes or 0,
            pickle=pickle, collective=collective, rank=rank, world_size=world_size,
        )  # fmt: skip

    def load_state(
        self,
        reference: Mapping[str, Any] | str | None = None,
        map_location: Any = None,
        mmap: bool = True,
        into: Any = None,
        pickle: bool = False,
    ) -> Any:
        """Load what ``save_state()`` saved.

        Parameters
        ----------
        reference : dict or str, optional
            As for ``load()``. Default: what this attempt begins with, as ``resume_path()`` says.
        map_location : optional
            Where tensors go, as for ``torch.load``. Default: to the device that each was saved from.
        mmap : bool, default True
            Tensors on the host are the file's own pages, copied when they are written to; else they are read at once.
        into : optional
            A state of the same shape, such as ``{"model": model.state_dict()}``: its tensors are filled, one after the
            other, and no second copy of them is made. What ``into`` lacks is only in what is returned.
        pickle : bool, default False
            Load pickled values as well. That runs code of whoever has saved them.

        Returns
        -------
        The state; None if no reference is given and there is nothing to resume from.

        Raises
        ------
        UsageError
            It is no state, or not one like ``into``; says how it differs. ``into`` is as it was.
        NotFound, IntegrityError, StoreError
            As ``load()``.
        """
        from async_ckpt.state.load import load_state

        options = {"map_location": map_location, "mmap": mmap, "into": into, "pickle": pickle}
        if reference is None:
            loaded = self.resume_path()
            return None if loaded is None else load_state(loaded, self._ranks, **options)
        with self._directory_for_loading() as directory:
            self._load(reference, directory, "own" if self._is_in_task() else "all")
            return load_state(directory, self._ranks, **options)

    def _is_in_task(self) -> bool:
        return self._checkpointer is not None or ENV_SPOOL in os.environ

    def _ranks(self) -> who.Ranks:
        return who.find(self._writer().task)

    @contextlib.contextmanager
    def _directory_for_loading(self) -> Iterator[str]:
        """An empty directory, beside the spool if there is one. It is removed at the end; what is mapped stays."""
        if not self._is_in_task():
            with tempfile.TemporaryDirectory(prefix="metaflow_checkpoint_") as directory:
                yield directory
            return
        spool = self._writer().spool
        directory = spool.new_work_directory()
        try:
            yield directory
        finally:
            spool.remove_work_directory(directory)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything this task saved is in the store.

        Parameters
        ----------
        timeout : float, optional
            Limit in seconds.

        Raises
        ------
        FlushError
            Some of it is not; names it and says why.
        """
        self._writer().flush(timeout)

    def step(self) -> None:
        """Say that a step of the training has ended, and the next one begins. Call it in every turn of the loop, in one
        process: it takes less than a microsecond, and the agent hears about once a second how long the steps took. In a
        subprocess of the step that begins with its first save.

        If they take longer while something is uploaded, by more than ``max_slowdown`` of ``@checkpoint``, then uploads
        take more time, as far as the interval between saves has it. ``status()["pace"]`` says what is done and why.

        Raises
        ------
        UsageError, SpoolError
            This process belongs to no task that runs.
        """
        self._writer().step()

    def status(self) -> dict[str, Any]:
        """How far the store is behind, and what would be lost now: see ``Checkpointer.status``."""
        return self._writer().status()

    def due(self, every: float | str | timedelta = "auto", collective: bool | None = None) -> bool:
        """Whether to save now. Ask in each step; it takes microseconds, and neither the store nor the agent is asked.

        True once it is so long since the last save was captured, or since the attempt began; at once when the end of
        this machine is told (SIGTERM, the notice of a spot instance, a ``deadline`` over the socket) and nothing was
        saved since. It stays True until something is saved.

        Parameters
        ----------
        every : float, str or timedelta, default "auto"
            Seconds, or a text such as ``"10 min"``. "auto": the interval that loses least by Young and Daly (sources in
            ``async_ckpt/task/due.py``), from what saves have cost so far and the mean time between failures
            (``METAFLOW_ASYNC_CKPT_MTBF_S``); never while the checkpoint before is still uploaded. Before a save was
            measured, it is taken to cost 5 s.
        collective : bool, optional
            Default: for a process that trains alone; saves of all processes of the task count, but those with
            ``latest=False``, if there are others. Ranks have to say: True, if they save together: rank 0 decides for
            the next call of all, and every rank calls this in each step. False, if this process saves for itself: only
            its own saves count.

        Raises
        ------
        UsageError
            ``every`` is no duration; a rank does not say whether it saves together with others; or ranks that save
            together are not on one machine.
        SpoolError, WaitTimeout
            What ranks share cannot be had, or rank 0 does not call this as often as this rank.
        """
        return self._writer().due(every, collective)


class Checkpoint(_Checkpoints):
    """Checkpoints outside of a step's main process: in its subprocesses, in notebooks and scripts.

    Parameters
    ----------
    temp_dir_root : str or PathLike, optional
        Where ``directory`` is made; a relative path is one in the directory that is current now.
    init_dir : bool, default False
        Make ``directory`` now. As a context manager it is made in any case, and removed at the end.
    """

    def __init__(self, temp_dir_root: str | os.PathLike[str] | None = None, init_dir: bool = False) -> None:
        # Absolute, because programs change their directory, and tempfile returns relative paths before Python 3.12.
        self._temp_dir_root = os.path.abspath(temp_dir_root) if temp_dir_root else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if init_dir:
            self._make_directory()

    @property
    def directory(self) -> str | None:
        """What ``save()`` saves and ``load()`` fills where no path is given."""
        return self._temporary.name if self._temporary else None

    def _make_directory(self) -> None:
        if self._temp_dir_root:
            os.makedirs(self._temp_dir_root, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="metaflow_checkpoint_", dir=self._temp_dir_root)

    def __enter__(self) -> Checkpoint:
        if self._temporary is None:
            self._make_directory()
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        latest: bool = True,
        name: str = layout.DEFAULT_NAME,
        storage_format: str = "files",
        snapshot: str = "auto",
        collective: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Reference:
        """Save in the name of the task this process belongs to; see ``current.checkpoint.save``."""
        return self._save(
            path, name=name, metadata=metadata, latest=latest, storage_format=storage_format, snapshot=snapshot,
            collective=collective, rank=rank, world_size=world_size,
        )  # fmt: skip

    def load(
        self,
        reference: Mapping[str, Any] | str,
        path: str | os.PathLike[str] | None = None,
        shard: str = "all",
        clean: bool = False,
        files: Collection[str] | None = None,
    ) -> str:
        """Load a checkpoint into ``path``, or into ``directory``.

        Parameters
        ----------
        reference : dict or str
            What ``save()`` returned, an entry of ``list()``, or a key. A key alone is looked up in Metaflow's
            configured datastore. Objects that have a ``to_dict()``, as metaflow-checkpoint hands them out, will do.
        path : str or PathLike, optional
            A directory; made if it is missing, and what is there stays.
        shard : "all" or "own", default "all"
            Of a collective checkpoint: the files of all ranks, or of this one alone.
        clean : bool, default False
            Take away what is in the directory and not in the checkpoint, once that is loaded: the rest of an older one.
            Without it the log says, once for a directory, what is left there.
        files : collection of str, optional
            Only these of its files, by their paths in it. Of a tar, all are loaded.

        Returns
        -------
        str
            The directory that it was loaded into.

        Raises
        ------
        UsageError, NotFound, IntegrityError, StoreError
            With the key and the reason; the directory is as it was.
        """
        target = path or self.directory
        if target is None:
            raise UsageError("There is no directory to load into", hint="Pass a path, or use Checkpoint(init_dir=True)")
        self._load(reference, target, shard, clean, files)
        return os.fsdecode(target)


class CurrentCheckpoint(_Checkpoints):
    """``current.checkpoint``.

    Parameters
    ----------
    checkpointer : Checkpointer
        The task's.
    defaults : mapping
        ``storage_format`` and ``snapshot`` as set on the decorator.
    """

    def __init__(self, checkpointer: Checkpointer, defaults: Mapping[str, str]) -> None:
        self._checkpointer: Checkpointer = checkpointer
        self._defaults = defaults
        self._watches: list[Watch] = []
        self._directory = checkpointer.spool.new_work_directory()
        self._began_ns = checkpointer.spool.attempt_began_ns()
        self._loaded: CheckpointInfo | None = None
        self._loading = threading.RLock()
        #: Loads what the load policy calls for, as long as nobody has asked for it.
        self._load_late: Callable[[], None] | None = None

    @property
    def directory(self) -> str:
        """An empty directory, or one with what was loaded; ``save()`` saves it where no path is given."""
        self._have_loaded()
        return self._directory

    @property
    def is_loaded(self) -> bool:
        """Whether the load policy loaded something at the start of this attempt."""
        return self.info is not None

    @property
    def info(self) -> CheckpointInfo | None:
        """What was loaded: ``pathspec``, ``attempt``, ``key``, ``name``, ``version_id``, ``metadata``,
        ``created_on``, ``size``, ``url``, ``storage_format``, as items and as attributes.
        """
        self._have_loaded()
        return self._loaded

    @property
    def task_identifier(self) -> str:
        """What this task has in common with the same step's (in a foreach, the same split's) tasks of other runs, as it
        stands in keys: 12 hex digits.
        """
        return self._checkpointer.task.identifier

    def begin(self, policy: str, shard: str, on_loaded: Callable[[CheckpointInfo], None]) -> None:
        """Apply a load policy; the decorator calls this once.

        With "fresh", a first attempt has something to load only if it was begun before. The agent is asking the store
        for that now, and only whoever wants to know what was loaded waits for the answer. The nodes of a gang wait
        here, because all of them must begin with the same checkpoint.
        """

        def load() -> None:
            if (loaded := self._load_newest(policy, shard)) is not None:
                on_loaded(loaded)

        task = self._checkpointer.task
        self._checkpointer.resumption.begin(self._directory, policy, shard)
        if policy == "fresh" and task.attempt == 0 and task.nodes == 1:
            self._load_late = load
        else:
            load()

    def _have_loaded(self) -> None:
        """Load what the load policy calls for, if that was not done yet."""
        with self._loading:
            if (load := self._load_late) is not None:
                load()
                self._load_late = None

    def _load_newest(self, policy: str, shard: str) -> CheckpointInfo | None:
        if self._checkpointer.task.nodes > 1:
            # Late: it brings the uploader's modules, which few Metaflow processes need.
            from async_ckpt.task import gang

            data = gang.load_newest(self._checkpointer, policy, self._directory, shard)
            self._checkpointer.resumption.note(self._directory, data)
        else:
            data = self._checkpointer.resumption.load_once()
        self._loaded = LoadedInfo(data) if data else None
        return self._loaded

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        name: str = layout.DEFAULT_NAME,
        metadata: Mapping[str, Any] | None = None,
        latest: bool = True,
        storage_format: str | None = None,
        snapshot: str | None = None,
        collective: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Reference:
        """Save a checkpoint. Returns at once; the upload happens in the background, and the end of the step waits for
        it.

        Parameters
        ----------
        path : str or PathLike, optional
            A directory, whose content is saved, or a file. Default: ``directory``.
        name : str, default "mfchckpt"
            Part of the key: 1 to 200 bytes of UTF-8 without ``/`` and control characters. A number is taken as text.
        metadata : dict, optional
            Values to keep with it. What is not JSON is converted (numbers of numpy and torch, dates, paths, sets), or
            kept as its ``repr``; what is larger than 1 MiB in all is replaced by a text. The log says so, once a key.
        latest : bool, default True
            Whether a retry may load it by itself.
        storage_format : "files" or "tar", optional
            One object per file, or one tar. Default: the decorator's.
        snapshot : "auto", "hardlink", "reflink" or "copy", optional
            How the files are captured.
        collective : bool, default False
            All ranks save one checkpoint together, each its own files: it is visible once all of them are in the store.
            Every rank calls this equally often, with the same metadata.
        rank, world_size : int, optional
            Which rank this is, and of how many. Default: ``RANK`` and ``WORLD_SIZE`` of the environment, else the nodes
            of the gang.

        Returns
        -------
        Reference
            A dict whose fields are attributes as well, with ``wait()``, ``done()``, ``state`` and ``error``. Kept as an
            artifact it is a plain dict, which needs nothing of this package.

        Raises
        ------
        UsageError, SnapshotError, SpoolError
            With the path, the reason and the way out; nothing was saved and nothing is lost.
        """
        if path is None:
            self._have_loaded()
        return self._save(
            path, name=name, metadata=metadata, latest=latest,
            storage_format=storage_format or self._defaults["storage_format"],
            snapshot=snapshot or self._defaults["snapshot"],
            collective=collective, rank=rank, world_size=world_size,
        )  # fmt: skip

    def resume_path(self, pattern: str | None = None) -> str | None:
        self._have_loaded()
        return super().resume_path(pattern)

    resume_path.__doc__ = _Checkpoints.resume_path.__doc__

    def resume_info(self) -> CheckpointInfo | None:
        self._have_loaded()
        return super().resume_info()

    resume_info.__doc__ = _Checkpoints.resume_info.__doc__

    def watch(
        self,
        path: str | os.PathLike[str],
        pattern: str = "checkpoint-*",
        settle: float | None = None,
        metadata_from: MetadataFrom | None = None,
        *,
        done: str | None = None,
        move: bool = False,
        keep: int | None = None,
        existing: bool = True,
        group: str | None = "auto",
        name: str = layout.DEFAULT_NAME,
        latest: bool = True,
        storage_format: str | None = None,
        snapshot: str | None = None,
    ) -> Watch:
        """Save every checkpoint that a trainer writes to a directory by itself, as soon as it is finished.

        Returns at once. A thread watches until the end of the step, which waits for what was written last. When a
        checkpoint counts as finished, and what happens to those that do not stay, is told in docs/watch.md.

        Parameters
        ----------
        path : str or PathLike
            The directory; it may come later, and come back after it vanished.
        pattern : str, default "checkpoint-*"
            Shell pattern of directories or files in it; ``**/`` stands for any number of folders. If one match lies in
            another, the outer one is the checkpoint. Links are not followed.
        settle : float, optional
            A checkpoint is finished when nothing in it has changed for so many seconds, if nothing else tells. Default:
            30 (``METAFLOW_ASYNC_CKPT_WATCH_SETTLE_S``). 0: as soon as it is closed, for single files.
        metadata_from : callable or str, optional
            What to keep with each: a function of its path that returns a dict, called in the watch's thread; or the
            name of a JSON file in it. Of that, single values at the top are kept, and those of the last entry of each
            history (a list of objects). ``path``, relative to the directory, is always kept.
        done : str, optional
            Name of a file that the trainer writes into a checkpoint when it is finished (for a single file: beside it,
            ``<its name>.<done>``). Then nothing else counts. If something in the checkpoint is newer than that file,
            everything must be quiet for ``settle`` seconds as well.
        move : bool, default False
            Save each, then remove it from the directory, so that the disk does not fill. A writer that comes back finds
            nothing in its place, so use it with ``done``, or a trainer that renames. What cannot be uploaded after that
            is lost; with ``keep`` it is still there.
        keep : int, optional
            Remove from the disk what is in the store, except for so many of the newest.
        existing : bool, default True
            Save what is there already as well, unless this task saved it before. The last one that an earlier attempt
            wrote, without a marker, may be half: it is left out until it is written to again.
        group : str or None, default "auto"
            Files that belong together are one checkpoint. Those of TensorFlow, DeepSpeed, Megatron and Keras are known.
            For others, a regular expression: its first group (or all of it) is what the names of one checkpoint have in
            common, e.g. ``r"(step-\\d+)[.-]"``. None: each file is by itself.
        name, latest, storage_format, snapshot
            As for ``save()``. A retry does not load one that was begun before another that is saved already.

        Returns
        -------
        Watch
            Has ``stop()``, and is a context manager; both wait for what was written last.

        Raises
        ------
        UsageError
            An argument is not valid. Everything else is told by the log; what is not saved fails the step at its end
            (``on_failure="raise"``).
        """
        options = WatchOptions(
            pattern=pattern, settle=settle, done=done, metadata_from=metadata_from, name=name, latest=latest, move=move,
            keep=keep, existing=existing, group=group,
            storage_format=storage_format or self._defaults["storage_format"],
            snapshot=snapshot or self._defaults["snapshot"],
        )  # fmt: skip
        watch = Watch(self._checkpointer, path, options, self._checkpointer.config, began_ns=self._began_ns)
        self._watches.append(watch)
        return watch

    def end_watches(self, timeout: float | None, *, complete: bool) -> None:
        """Stop what was begun by ``watch()``; the decorator calls this. See ``Watch.stop``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        errors = []
        while self._watches:
            try:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                self._watches.pop().stop(left, complete=complete)
            except WatchError as error:
                errors.append(error)
        if errors:
            raise errors[0] if len(errors) == 1 else WatchError("; ".join(map(str, errors)))

    def load(
        self,
        reference: Mapping[str, Any] | str,
        path: str | os.PathLike[str] | None = None,
        shard: str = "all",
        clean: bool = False,
        files: Collection[str] | None = None,
    ) -> str:
        """Load a checkpoint into ``path``; without one, ``directory`` becomes a new directory with it, and the old one
        is removed with what is in it. See ``Checkpoint.load``.
        """
        if path:
            self._load(reference, path, shard, clean, files)
            return os.fsdecode(path)
        self._have_loaded()
        target = self._checkpointer.spool.new_work_directory()
        loaded = self._load(reference, target, shard, files=files)
        self.cleanup()
        self._directory = target
        self._checkpointer.resumption.note(target, loaded)
        return target

    def refresh_directory(self) -> None:
        """Make ``directory`` a new, empty one; the old one is removed with what is in it. What was saved is not
        concerned.
        """
        self._have_loaded()
        self.cleanup()
        self._directory = self._checkpointer.spool.new_work_directory()
        self._checkpointer.resumption.note(self._directory, None)

    def cleanup(self) -> None:
        """Remove ``directory`` with what is in it, as the end of the step does. What was saved is not concerned."""
        self._checkpointer.spool.remove_work_directory(self._directory)


async def _in_thread(call: Callable[[], T]) -> T:
    import anyio.to_thread  # Late: few processes have asynchronous code.

    return await anyio.to_thread.run_sync(call)


def wait_until_stored(reference: Any) -> None:
    """Wait for a checkpoint, by its reference or key, if it is one that this task has saved and that is on its way."""
    key = reference.get("key") if isinstance(reference, Mapping) else getattr(reference, "key", reference)
    if isinstance(key, str) and ENV_SPOOL in os.environ:
        Checkpointer.from_environment().wait_for_key(key)
