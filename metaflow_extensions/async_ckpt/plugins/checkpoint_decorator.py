"""``@checkpoint``: Metaflow's hooks, translated."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from metaflow.decorators import StepDecorator
from metaflow.exception import MetaflowException
from metaflow.flowspec import INTERNAL_ARTIFACTS_SET
from metaflow.metadata_provider import MetaDatum
from metaflow.unbounded_foreach import UBF_CONTROL

from async_ckpt import layout, pod_anyio
from async_ckpt.capture import check_strategy
from async_ckpt.card.place import TYPE, card_place
from async_ckpt.config import CARD_REFRESH_S, ENV_ATTEMPT, ENV_PREFIX, ENV_SPOOL, INTERRUPT_FLUSH_S, Config
from async_ckpt.errors import CheckpointError, FlushError, StoreError, UsageError, WatchError
from async_ckpt.spool.place import places
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import LOGGER, write_lines_with
from async_ckpt.task.artifacts import checkpoints_in
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.listing import TASK_CHECKPOINTS
from async_ckpt.task.reference import CheckpointInfo
from async_ckpt.task.termination import Termination

from .artifact_store import store_of_cards, store_of_flow
from .checkpoint import TASK_LATEST_CHECKPOINT, CurrentCheckpoint, JsonList
from .options import OPTIONS, SETTINGS, convert

_ENV_UID = "METAFLOW_CHECKPOINT_UID"
#: Set by Metaflow for the workers of a gang, wherever they run.
_ENV_CONTROL_TASK = "MF_PARALLEL_CONTROL_TASK_ID"

#: The oldest anyio that has what is used of it.
_ANYIO = (4, 7)

log = logging.getLogger(LOGGER)


class CheckpointException(MetaflowException):  # type: ignore[misc]
    headline = "@checkpoint"


class CheckpointDecorator(StepDecorator):  # type: ignore[misc]
    """
    Saves the state of a step and resumes from it after a failure. `current.checkpoint.save()` returns at once: the
    files are captured in about a millisecond and uploaded in the background; the end of the step waits until they are
    in the datastore.

    Every option may be given as text, as `run --with checkpoint:load_policy=eager,max_pending=3` does.

    Parameters
    ----------
    load_policy : str, default "fresh"
        What is loaded when the task starts. "fresh": the newest checkpoint of this task (none in its first attempt).
        "eager": else the newest of this step in the namespace, from whatever run. "none", or None: nothing.
    load_shard : str, default "all"
        Of a collective checkpoint: "all" ranks' files are loaded, or each rank's "own".
    temp_dir_root : str, optional
        Where `current.checkpoint.directory` and the spool are made. Best on the disk the trainer writes to.
    show_card : bool, default True
        Whether the task has a card that shows its checkpoints while it runs.
    uploader : str, default "process"
        "process": a process of its own uploads, and files are captured by hard links. "thread": a thread of the task
        does, and files are cloned or copied.
    storage_format : str, default "files"
        Default of `save()`: "files" or "tar".
    snapshot : str, default "auto"
        Default of `save()`: "auto", "hardlink", "reflink" or "copy".
    flush_timeout : float, optional
        How many seconds the end of the step waits for uploads at most.
    on_failure : str, optional
        "raise" (the default): no attempt ends well whose checkpoints are not in the store. "warn": a line in the log.
    on_backlog : str, optional
        What `save()` does where `max_pending` or `max_pending_bytes` is reached or the disk is nearly full: "wait" (the
        default), "supersede" (drop the oldest that wait, but the newest of each name), or "raise".
    max_pending : int, optional
        How many checkpoints may wait for the store; 0, the default: any number.
    max_pending_bytes : int, optional
        How many bytes; 0, the default: any number.
    dangling_links : str, optional
        What `save()` does with a symbolic link that leads nowhere: "refuse" (the default), or "keep" it as it stands.
    max_exposure : float, str or timedelta, optional
        How much work may be lost with the machine at most: seconds, or "15 min". Where it is more, the log says so.
    keep_last : int, optional
        Keep so many of the newest checkpoints of each name in the store; older ones are removed, unless another rule
        keeps them. 0, the default: this is no rule. With no rule everything is kept.
    keep_best : tuple or str, optional
        Keep those that are best by a number in their metadata: ("loss", "min", 3), or "loss min 3".
    keep_every : int, optional
        Keep those whose version is a multiple of this.
    keep_referenced : bool, optional
        Whether what the artifacts of this task refer to is kept in any case (the default: it is).
    max_slowdown : float, optional
        By which share steps may take longer while something is uploaded; 0.01, the default, is one per cent. It counts
        where `current.checkpoint.step()` tells how long they take.

    MF Add To Current
    -----------------
    checkpoint -> metaflow_extensions.async_ckpt.plugins.checkpoint.CurrentCheckpoint
        Saves, lists and loads checkpoints of the task.

        @@ Returns
        ----------
        CurrentCheckpoint
            The task's checkpoints.
    """

    name = "checkpoint"
    defaults = {name: option.default for name, option in OPTIONS.items()}  # noqa: RUF012

    attributes: dict[str, Any]
    _checkpointer: Checkpointer | None = None
    _flush_failed = False
    _loaded: CheckpointInfo | None = None
    #: Is added to errors that the store may have caused; empty where the store is Metaflow's datastore.
    _about_store = ""

    # -- when the flow starts --------------------------------------------------------------------------------------

    def step_init(
        self, flow: Any, graph: Any, step_name: str, decorators: Any, environment: Any, flow_datastore: Any, logger: Any
    ) -> None:
        self._logger, self._flow_datastore = logger, flow_datastore
        INTERNAL_ARTIFACTS_SET.update([TASK_CHECKPOINTS, TASK_LATEST_CHECKPOINT])
        try:
            # Only here: a task whose step has the decorator by --with is started with text again, and comes here too.
            self.attributes = convert(self.attributes)
            check_strategy(self.attributes["snapshot"], leases=self.attributes["uploader"] == "process")
            Config.from_env({**os.environ, **self._settings()})
            store_of_flow(flow, flow_datastore)
        except CheckpointError as error:
            raise CheckpointException(f"Step *{step_name}*: {error}") from error

    def _settings(self) -> dict[str, str]:
        given = {option.setting or name: self.attributes[name] for name, option in SETTINGS.items()}
        return {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in given.items() if value is not None}

    def add_to_package(self) -> Iterator[tuple[str, str]]:
        """What a pod needs beside this library, which its ``METAFLOW_PACKAGE_POLICY`` puts there."""
        return pod_anyio.files()

    # -- the life of a task ----------------------------------------------------------------------------------------

    def task_pre_step(
        self,
        step_name: str,
        task_datastore: Any,
        metadata: Any,
        run_id: str,
        task_id: str,
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: Any,
        inputs: Any,
    ) -> None:
        if retry_count > max_user_code_retries:
            return  # @catch's fallback: the user's code does not run.
        from metaflow import current

        write_lines_with(self._write)
        stack = [(index, value) for index, _, value in flow.foreach_stack() or []]
        gang = graph[step_name].parallel_step
        in_foreach = bool(stack) or gang
        # A gang's checkpoints are its control task's: there existing clients look.
        control = None if ubf_context == UBF_CONTROL else os.environ.get(_ENV_CONTROL_TASK)
        task = layout.TaskInfo(
            flow.name, str(run_id), step_name, (control if gang else None) or str(task_id), retry_count,
            scope=self._scope(),
            identifier=(
                layout.foreach_identifier(stack, gang=gang) if in_foreach else layout.step_identifier(step_name)
            ),
            node=stack[-1][0] if gang else 0,
            nodes=flow._parallel_ubf_iter.num_parallel if gang else 1,
        )  # fmt: skip

        def register(kind: str, fields: list[tuple[str, Any]]) -> None:
            tags = [f"attempt_id:{retry_count}"]
            data = [MetaDatum(field=field, value=value, type=kind, tags=tags) for field, value in fields]
            metadata.register_metadata(run_id, step_name, task_id, data)

        try:
            _check_installed()
            os.environ.update(self._settings())
            config = Config.from_env()
            store, notes = store_of_flow(flow, self._flow_datastore)
            if notes:
                self._about_store = (
                    f". This flow's checkpoints go to the artifact store {store.root}: look for its root, endpoint and "
                    "credentials in the config of @with_artifact_store"
                )
                register("mf-checkpoint-artifact-store", notes)
            checkpointer = self._checkpointer = Checkpointer.start(
                places(self.attributes["temp_dir_root"], config),
                task,
                store,
                config,
                uploader=self.attributes["uploader"],
                gang_leader_pid=os.getppid() if task.node and _runs_locally() else 0,
                card=self._card_store(task, config, register),
            )
            self._config = config
            checkpointer.referenced = lambda: checkpoints_in(vars(flow))
            self._termination = Termination(self._checkpointer, config.termination_grace_s)
            self._termination.install()
            self._current = checkpoint = CurrentCheckpoint(self._checkpointer, self.attributes)

            def on_loaded(loaded: CheckpointInfo) -> None:
                self._loaded = loaded
                checkpointer.spool.note_resumed(loaded.to_dict())
                log.info(
                    "Loading the following checkpoint:"
                    f"\n\t[pathspec] {loaded.pathspec}\n\t[key] {loaded.key}"
                    f"\n\t[created on] {loaded.get('created_at') or loaded.created_on}\n\t[url] {loaded.url}"
                )
                fields = ("key", "pathspec", "attempt", "name")
                register("checkpoint", [(f"checkpoint-load-{field}", getattr(loaded, field)) for field in fields])

            checkpoint.begin(self.attributes["load_policy"], self.attributes["load_shard"], on_loaded)
        except CheckpointError as error:
            about = self._about_store if isinstance(error, StoreError) else ""
            raise CheckpointException(f"{error}{about}") from error
        os.environ[ENV_SPOOL], os.environ[ENV_ATTEMPT] = self._checkpointer.spool.directory, str(retry_count)
        # What existing flows hand on to their subprocesses.
        os.environ[_ENV_UID] = f"{task.pathspec}/{task.identifier}/{task.scope}/{retry_count}"
        current._update_env({"checkpoint": checkpoint})

    def _card_store(
        self, task: layout.TaskInfo, config: Config, register: Callable[[str, list[tuple[str, Any]]], None]
    ) -> StoreSpec | None:
        """Where the card is written; Metaflow's UI is told of it. A gang has one, its first node's."""
        if not (config.card and self.attributes["show_card"]) or task.node:
            return None
        try:
            store = store_of_cards(self._flow_datastore)
        except UsageError as error:
            log.info(f"This task has no card of its checkpoints: {error}")
            return None
        facts: dict[str, Any] = {
            "card_uuid": card_place(task).uuid, "rank": None, "type": TYPE, "options": {}, "is_editable": False,
            "is_runtime_card": True, "refresh_interval": CARD_REFRESH_S, "customize": False, "id": None,
        }  # fmt: skip
        register("card-info", [(facts["card_uuid"], json.dumps(facts))])
        return store

    def _scope(self) -> str:
        from metaflow import current, get_namespace

        tags = sorted(tag for tag in current.tags or () if tag.startswith(layout.TAG_PREFIX))
        if tags:
            log.info(f"The run has the tag {tags[0]!r}: its checkpoints are kept under that")
            return layout.scope_of(tags[0].split(":")[1])
        return layout.scope_of(get_namespace() or "")

    def task_decorate(self, step_func: Callable[[], Any], *_: Any) -> Callable[[], Any]:
        @functools.wraps(step_func)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return step_func(*args, **kwargs)
            except Exception:
                raise  # task_exception sees it.
            except KeyboardInterrupt:  # No hook sees this one, nor SystemExit.
                self._flush_best_effort(INTERRUPT_FLUSH_S)
                raise
            except BaseException:
                self._flush_best_effort(self._config.exception_flush_timeout_s)
                raise

        return wrapped if self._checkpointer is not None else step_func

    def task_post_step(self, step_name: str, flow: Any, *_: Any) -> None:
        if self._checkpointer is None:
            return
        failed: list[CheckpointError] = []
        try:
            # Before the flush: it saves what a trainer wrote last.
            self._current.end_watches(self.attributes["flush_timeout"], complete=True)
        except WatchError as error:
            failed.append(error)
        try:
            self._checkpointer.flush(self.attributes["flush_timeout"])
        except FlushError as error:
            self._flush_failed = self._config.on_failure != "warn"
            failed.append(error)
        if failed and self._config.on_failure != "warn":
            raise CheckpointException("; ".join(map(str, failed)) + self._about_store) from failed[0]
        for problem in failed:
            log.warning(f"{problem}{self._about_store}")
        self._checkpointer.say_what_was_saved()
        self._record(flow)
        found = checkpoints_in(vars(flow))  # Metaflow takes artifacts away from the flow as it stores them.
        self._checkpointer.referenced = lambda: found

    def task_exception(self, exception: BaseException, step_name: str, flow: Any, *_: Any) -> bool:
        if self._checkpointer is not None:
            if threading.current_thread() is threading.main_thread():
                signal.alarm(0)  # @timeout would hit our flush; it has its own limit.
            if not self._flush_failed:
                self._flush_best_effort(self._config.exception_flush_timeout_s)
            try:
                self._record(flow)
                self._checkpointer.close(clean=False)
            except CheckpointError as error:
                log.warning(f"After the step's own error: {error}")
        return False

    def task_finished(self, step_name: str, flow: Any, graph: Any, is_task_ok: bool, *_: Any) -> None:
        if self._checkpointer is not None:
            self._termination.uninstall()
            self._checkpointer.close(clean=is_task_ok)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _flush_best_effort(self, limit_s: float) -> None:
        """Bring in what can be brought in; the user's own error comes first, so nothing is raised here."""
        assert self._checkpointer is not None
        deadline = time.monotonic() + limit_s
        try:
            # Only what is finished is saved: the trainer may have died while it wrote the rest.
            self._current.end_watches(limit_s / 2, complete=False)
            # Other ranks may never save their parts, so they are not waited for long.
            left = max(deadline - time.monotonic(), 0.0)
            self._checkpointer.flush(left, gather_s=self._config.collective_grace_s)
        except CheckpointError as error:
            log.warning(f"After the step's own error: {error}")

    def _record(self, flow: Any) -> None:
        """The artifacts existing clients read."""
        assert self._checkpointer is not None
        committed = self._checkpointer.committed()
        setattr(flow, TASK_CHECKPOINTS, JsonList(committed))
        newest = next((data for text in committed if layout.is_latest(data := json.loads(text))), None)
        if newest is None and self._loaded is not None and self._loaded.pathspec == self._checkpointer.task.pathspec:
            newest = self._loaded.to_dict()
        setattr(flow, TASK_LATEST_CHECKPOINT, newest)

    def _write(self, line: str) -> None:
        self._logger(f"[@checkpoint] {line}", timestamp=False, bad=False)


def _runs_locally() -> bool:
    """Whether the nodes of a gang are processes that the first has started (Metaflow decides by the same)."""
    return os.environ.get("METAFLOW_RUNTIME_ENVIRONMENT", "local") == "local"


def _check_installed() -> None:
    """Notice at the start of an attempt, not after hours at its end, that nothing can be uploaded from here.

    Only anyio is needed: without aiobotocore uploads go over boto3, which Metaflow needs itself.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("@checkpoint needs Linux where the task runs", hint="Run the step --with kubernetes or batch")
    wanted = ".".join(map(str, _ANYIO))
    hint = f"Add it to the task's environment, e.g. @pypi(packages={{'anyio': '>={wanted}'}})"
    if importlib.util.find_spec("anyio") is None:
        raise UsageError("@checkpoint needs anyio where the task runs, and it is not installed there", hint=hint)
    try:
        version = metadata.version("anyio")
    except metadata.PackageNotFoundError:  # It came with the code package, or without its description.
        return
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _ANYIO:
        raise UsageError(f"@checkpoint needs anyio {wanted} or later where the task runs, not {version}", hint=hint)
