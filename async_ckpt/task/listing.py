"""What checkpoints a task has: the one answer behind ``Checkpoint().list(task=…)`` and ``async-ckpt list --task``.

Metaflow's metadata knows the task: where its data lies, which attempt was its last, and whether ``resume`` cloned it;
then its checkpoints are those of its origin. The store knows what is committed, and the spools on this machine what is
on its way. A task that this metadata does not know may still have checkpoints in the configured datastore.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .. import layout
from ..config import ENV_SPOOL, Config
from ..errors import CheckpointError, NotFound, SpoolError, StoreError, UsageError
from ..layout import newest
from ..spool import journal, place
from ..spool.journal import ADMITTED, COMMITTED
from ..spool.spool import Spool
from ..stores import catalog
from ..stores.base import StoreSpec
from .lookup import first_answer, with_default
from .reference import CheckpointInfo

#: Stands for every attempt.
ALL = "all"

#: The artifact in which a task keeps what its last attempt has committed.
TASK_CHECKPOINTS = "_task_checkpoints"

#: What a task notes of the store that ``@with_artifact_store`` names, as metaflow-checkpoint does.
NOTED_TYPE, NOTED_ROOT = "artifact-store-ds-type", "artifact-store-ds-root"

_PARTS = ("flow", "run", "step", "task")


def list_task(
    task: Any,
    *,
    name: str | None = None,
    attempt: int | str | None = None,
    spool: str | None = None,
    first: StoreSpec | None = None,
) -> list[CheckpointInfo]:
    """Checkpoints of any task, newest first, each with a ``state``.

    Parameters
    ----------
    task : metaflow.Task or str
        The task, or its pathspec ``flow/run/step/task``.
    name : str or None
        Only those of this name.
    attempt : int, str or None
        Which attempt, or ``"all"``. None: that of a ``Task`` made for one attempt, else the task's last. Attempts of a
        task that ``resume`` cloned are those of its origin.
    spool : str or None
        A spool to look into beside those in the usual directory.
    first : StoreSpec or None
        A store to look in before that of the task.

    Raises
    ------
    UsageError
        That is no task, or no attempt; or its datastore is of a kind that is not read here.
    NotFound
        There is no such task, and no checkpoint of it: says where was looked.
    StoreError
        The store, or Metaflow's metadata, cannot be read.
    """
    pathspec, chosen = _pathspec(task)
    number, is_last = check_attempt(attempt), attempt is None
    with _metadata_errors():
        found = _find(pathspec)
        if is_last and chosen is not None and found is not None and found.pathspec == pathspec:
            number, is_last = chosen, False
        listed = _list(found, pathspec, name, number, is_last, spool, first)
        if listed or found is None:
            return listed
        recorded = _recorded(found)
        # Nodes of a gang have theirs with the first node's task, and a step that saves nothing inherits them.
        owner = next((data.pathspec for data in recorded if data.pathspec != found.pathspec), None)
        if owner is not None:
            return _list(_find(owner), owner, name, number, is_last, spool, first)
        # What is not in this store any more was removed; but it may never have been there.
        roots = tuple(store.root.rstrip("/") + "/" for store in stores_of_task(found, first))
        elsewhere = [data for data in recorded if not str(data.url).startswith(roots)]
        return choose(elsewhere, (), name=name, attempt=number)


def list_many(
    flow: str | None,
    run: str | None = None,
    step: str | None = None,
    *,
    name: str | None = None,
    attempt: int | str | None = None,
    first: StoreSpec | None = None,
) -> list[CheckpointInfo]:
    """Checkpoints of many tasks, newest first, each with a ``state``: those in the datastore, and those that are on
    their way there from this machine.

    Parameters
    ----------
    flow, run, step : str
        Of this flow, of this run of it, of this step; a run and a step may be given by their pathspecs.
    name, attempt, first
        As for ``list_task``; without ``attempt``, of all attempts.

    Raises
    ------
    UsageError
        One of them cannot be the part of a pathspec, or they contradict each other, or no flow is named.
    StoreError
        The store cannot be read.
    """
    flow, run, step = parts_of(flow, run, step)
    for kind, part in (("flow", flow), ("run", run), ("step", step)):
        if part is not None and (not isinstance(part, str) or "/" in part or part in ("", ".", "..")):
            raise UsageError(f"{kind}={part!r} is not the name of a {kind}", hint="Give flow='Train', run='123'")
    number, config = check_attempt(attempt), Config.from_env()
    stores = with_default(first)
    wanted = {"flow": flow, "run": run, "step": step}

    def is_wanted(spool: Spool) -> bool:
        task = spool.task
        mine = {"flow": task.flow, "run": task.run, "step": task.step}
        return all(part in (None, mine[kind]) for kind, part in wanted.items()) and spool.store.root in roots

    roots = {store.root for store in stores}
    pending = on_disk(filter(is_wanted, all_spools(config)))
    found, failed = first_answer(
        stores, config, lambda s: catalog.list_below(s, flow, run, step, config, name=name, attempt=number)
    )
    if failed and not found:
        raise failed[0]
    return choose(found or [], pending, name=name, attempt=number)


def parts_of(flow: str | None, run: str | None, step: str | None) -> tuple[str, str | None, str | None]:
    """The parts of a pathspec, however they are given: ``run="Train/123"``, ``step="Train/123/start"``."""
    given = {"flow": flow, "run": run, "step": step}
    for length, kind in enumerate(given, 1):
        text = given[kind]
        parts = text.split("/") if isinstance(text, str) else []
        if len(parts) == length > 1:
            given[kind] = None
            if any(given[name] not in (None, part) for name, part in zip(given, parts, strict=False)):
                raise UsageError(f"{kind}={text!r} contradicts what else is given", hint='Give flow="Train", run="123"')
            given |= zip(given, parts, strict=False)
    if given["flow"] is None:
        raise UsageError("Whose run or step is meant is not said", hint='Give flow="Train" as well, or run="Train/123"')
    return given["flow"], given["run"], given["step"]


def on_disk(spools: Iterable[Spool]) -> list[CheckpointInfo]:
    """What is on its way to the store from some spools. To be asked before the store is: what is committed meanwhile is
    seen twice then, and not missed.
    """
    found = []
    for spool in spools:
        if pending := spool.records.pending():
            known = journal.Reader(spool.path("journal")).look()
            states = ((item, known[item.id].state if item.id in known else ADMITTED) for item in pending)
            found += [CheckpointInfo(item.reference, state=state) for item, state in states]
    return found


def choose(
    stored: Iterable[Mapping[str, Any]], pending: Iterable[CheckpointInfo], *, name: str | None, attempt: int | None
) -> list[CheckpointInfo]:
    """What is in the store and what is on its way there, each once and with its ``state``, newest first: all, or those
    of a name and an attempt.
    """
    found = {data["key"]: CheckpointInfo(data, state=COMMITTED) for data in stored}
    for data in pending:
        found.setdefault(data["key"], data)
    return newest.newest_first(
        data
        for data in found.values()
        if name in (None, data.name) and (attempt is None or layout.order(data)[0] == attempt)
    )


def check_attempt(attempt: int | str | None) -> int | None:
    """Return the number of an attempt; None for None and ``ALL``; ``UsageError`` for anything else."""
    if attempt is None or attempt == ALL:
        return None
    if not (str(attempt).isascii() and str(attempt).isdecimal()):
        raise UsageError(
            f"attempt={attempt!r} is not a number", hint=f"They count from 0; {ALL!r} stands for every one"
        )
    return int(attempt)


def stores_of_task(task: Any, first: StoreSpec | None = None) -> list[StoreSpec]:
    """Where to look for the checkpoints of a ``metaflow.Task``: in ``first``, then where the task says that it saves,
    then in the configured datastore; ``task`` may be None.
    """
    from ..stores.metaflow import spec_for

    metadata = task.metadata_dict if task is not None else {}
    kind, root = (NOTED_TYPE, NOTED_ROOT) if NOTED_ROOT in metadata else ("ds-type", "ds-root")
    return with_default(first, spec_for(metadata[kind], metadata[root]) if root in metadata else None)


def _pathspec(task: Any) -> tuple[str, int | None]:
    """The pathspec, and the attempt that a ``Task`` was made for."""
    pathspec = task if isinstance(task, str) else getattr(task, "pathspec", None)
    if not isinstance(pathspec, str):
        raise UsageError(f"{task!r} is no task", hint="Pass a Task, or flow/run/step/task")
    parts = pathspec.split("/")
    if len(parts) in (1, 2, 3) and all(parts):
        kind = _PARTS[len(parts) - 1]
        raise UsageError(f"{pathspec!r} is a {kind}, and not a task", hint="A task's pathspec is flow/run/step/task")
    layout.metadata_folder(pathspec)
    return pathspec, getattr(task, "_attempt", None)


def _find(pathspec: str) -> Any:
    """The task, or the one it was cloned from; None if Metaflow's metadata does not know it."""
    from metaflow import Task
    from metaflow.exception import MetaflowNotFound

    try:
        task = Task(pathspec, _namespace_check=False)
    except MetaflowNotFound:
        return None
    seen = {pathspec}
    while True:
        own = {entry.name: entry.value for entry in task.metadata}
        flow, run, step, _ = task.pathspec.split("/")
        if "origin-task-id" not in own:
            return task
        origin = f"{flow}/{own.get('origin-run-id', run)}/{step}/{own['origin-task-id']}"
        if origin in seen:
            return task
        seen.add(origin)
        task = Task(origin, _namespace_check=False)


def _list(
    task: Any,
    pathspec: str,
    name: str | None,
    attempt: int | None,
    is_last: bool,
    spool: str | None,
    first: StoreSpec | None,
) -> list[CheckpointInfo]:
    """What the stores and the spools have of a task, which may be None: then ``NotFound`` if it is nothing.

    ``is_last``: of its last attempt. Otherwise of that with the number, or of all.
    """
    stores, config = stores_of_task(task, first), Config.from_env()
    pathspec = task.pathspec if task is not None else pathspec
    roots = {store.root for store in stores}
    spools = [s for s in all_spools(config, spool) if s.task.pathspec == pathspec and s.store.root in roots]
    pending = on_disk(spools)
    last = max([task.current_attempt, *(found.task.attempt for found in spools)]) if task is not None else None
    if is_last:
        attempt = last
    folder, named = layout.metadata_folder(pathspec), name if task is not None else None
    found, failed = first_answer(
        stores, config, lambda s: catalog.list_references(s, folder, config, name=named, attempt=attempt)
    )
    stored = found or []
    if failed and not stored:
        raise failed[0]
    if task is None and not stored and not pending:
        raise _not_found(pathspec, stores)
    if last is not None and attempt is not None and attempt > last and not stored:
        raise NotFound(
            f"The task {pathspec!r} has no attempt {attempt}",
            hint=f"Its attempts are 0 to {last}" if last else "Its only attempt is 0",
        )
    if is_last and attempt is None:
        attempt = max(layout.order(data)[0] for data in [*stored, *pending])
    return choose(stored, pending, name=name, attempt=attempt)


def all_spools(config: Config, given: str | None = None) -> Iterator[Spool]:
    """All spools on this machine: in the usual directories, beside that of the own task, and the one given."""
    own = os.environ.get(ENV_SPOOL)
    roots = {*itertools.chain.from_iterable(place.places(None, config)), *([os.path.dirname(own)] if own else [])}
    directories = {given} if given else set()
    for root in roots:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            directories |= {os.path.join(root, name) for name in os.listdir(root) if "." not in name}
    for directory in sorted(directories):
        with contextlib.suppress(SpoolError):  # It has gone in this moment, or is of another version.
            yield Spool.open(directory)


def _recorded(task: Any) -> list[CheckpointInfo]:
    """What the task's artifact has, its own or inherited from an earlier step."""
    recorded = task[TASK_CHECKPOINTS].data if TASK_CHECKPOINTS in task else []
    return [CheckpointInfo(data) for data in recorded if isinstance(data.get("pathspec"), str)]


def _not_found(pathspec: str, stores: list[StoreSpec]) -> NotFound:
    from metaflow import Flow, Run, Step, get_metadata
    from metaflow.exception import MetaflowNotFound

    parts, missing = pathspec.split("/"), f"task {pathspec!r}"
    for length, client in enumerate((Flow, Run, Step), start=1):
        above = "/".join(parts[:length])
        try:
            client(above, _namespace_check=False)
        except MetaflowNotFound:
            missing = f"{_PARTS[length - 1]} {above!r}"
            break
    return NotFound(
        f"There is no {missing} in Metaflow's metadata ({get_metadata()}), and no checkpoint of {pathspec!r} in the "
        f"datastore ({', '.join(store.root for store in stores)})",
        hint="Check the pathspec; METAFLOW_PROFILE, METAFLOW_DEFAULT_METADATA and METAFLOW_DEFAULT_DATASTORE say where "
        "this process looks",
    )


@contextlib.contextmanager
def _metadata_errors() -> Iterator[None]:
    """Metaflow's client raises its own errors, and those of requests, which are ``OSError``s."""
    from metaflow import get_metadata
    from metaflow.exception import MetaflowException

    try:
        yield
    except CheckpointError:
        raise
    except (MetaflowException, OSError) as error:
        raise StoreError(
            f"Metaflow's metadata cannot be read: {error}", where=get_metadata(),
            hint="Check METAFLOW_PROFILE, METAFLOW_DEFAULT_METADATA and METAFLOW_SERVICE_URL",
        ) from error  # fmt: skip
