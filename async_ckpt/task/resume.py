"""What an attempt resumes from, for all of its processes.

The task's process says it in a file beside the directory that it loads into: ``work/<attempt>-resume/attempt.json`` in
the spool. Its subprocesses find the spool by their environment, and so that file. Where the task has not loaded yet
what its load policy calls for (nobody has asked in a first attempt), whoever asks first loads it, for all.

Ranks that torchrun has started again find what was saved since: the first of them that asks loads it, and says so to
the others in a file of that start.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SpoolError, UsageError, WaitTimeout, os_hint, os_reason
from ..ranks import who
from ..system.files import locked, write_atomically
from .landing import STAGING_PREFIX
from .loader import Loader
from .tracker import Tracker

#: How many names an error tells.
_NAMED = 10


@dataclass(frozen=True)
class _Said:
    """What such a file says.

    ``directory`` is where it was loaded, or will be, by ``policy`` and ``shard``. ``is_decided``: this is done;
    ``reference`` has the metadata of what was loaded, or None. ``file`` is its name where it is a single file.
    """

    directory: str
    policy: str
    shard: str
    is_decided: bool = False
    file: str = ""
    reference: dict[str, Any] | None = None


class Resumption:
    """See the module."""

    def __init__(self, tracker: Tracker, loader: Loader) -> None:
        self._tracker, self._loader = tracker, loader
        self._folder = tracker.spool.path("work", f"{tracker.task.attempt}-resume")
        self._file = os.path.join(self._folder, "attempt.json")

    # -- the task's part -----------------------------------------------------------------------------------------------

    def begin(self, directory: str, policy: str, shard: str) -> None:
        """Say what will be loaded where; what an earlier start of this attempt has said is over."""
        _write(self._file, _Said(directory, policy, shard))

    def note(self, directory: str, loaded: Mapping[str, Any] | None) -> None:
        """Say what this attempt resumes from now: what was loaded into ``directory``; None: nothing."""
        _write(self._file, _decided(replace(_read(self._file), directory=directory), loaded))

    def load_once(self) -> dict[str, Any] | None:
        """Load what the load policy calls for, unless a process of this attempt has. Returns its metadata."""
        return self._once(self._file, None).reference

    # -- for all -------------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any] | None:
        """See ``resume_info`` of ``current.checkpoint``."""
        return self._now().reference

    def path(self, pattern: str | None = None) -> str | None:
        """See ``resume_path`` of ``current.checkpoint``."""
        said = self._now()
        if said.reference is None:
            return None
        if not os.path.isdir(said.directory):
            raise UsageError(
                "What was loaded to resume from is not there any more",
                where=said.directory,
                hint="Ask for resume_path() before you call cleanup(), or remove the directory",
            )
        if pattern is None:
            return os.path.join(said.directory, said.file) if said.file else said.directory
        return _one_that_fits(said.directory, pattern)

    def _now(self) -> _Said:
        self._tracker.check_attempt()
        if not who.restart_count():
            return self._once(self._file, None)
        launch = who.find(self._tracker.task).launch
        return self._once(os.path.join(self._folder, f"launch-{launch}.json"), _read(self._file))

    def _once(self, file: str, anew: _Said | None) -> _Said:
        """What a file says, once it has been decided: where nobody has, by this process.

        ``anew``: the file may not be there yet. What is loaded then is what this says, into a directory of its own.
        """
        if anew is None or os.path.exists(file):
            said = _read(file)
            if said.is_decided:
                return said
        limit_s = self._tracker.config.gang_start_timeout_s
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(f"{file}.lock", timeout_s=limit_s))
            except TimeoutError as error:
                raise WaitTimeout(
                    f"Another process of the task loads what is resumed from, and has not ended within {limit_s:g} s",
                    where=file,
                    hint="See what it waits for; METAFLOW_ASYNC_CKPT_GANG_START_TIMEOUT_S is the limit",
                ) from error
            except OSError as error:
                raise _not_noted(error, file) from error
            if anew is not None and not os.path.exists(file):
                directory = self._tracker.spool.new_work_directory()
                _write(file, _Said(directory, anew.policy, anew.shard))
            said = _read(file)
            if not said.is_decided:
                loaded = self._loader.load_newest(said.policy, said.directory, said.shard, again=anew is not None)
                _write(file, said := _decided(said, loaded))
            return said


def _decided(said: _Said, loaded: Mapping[str, Any] | None) -> _Said:
    if loaded is None:
        return replace(said, is_decided=True, file="", reference=None)
    names = [name for name in os.listdir(said.directory) if not name.startswith(STAGING_PREFIX)]
    is_file = len(names) == 1 and os.path.isfile(os.path.join(said.directory, names[0]))
    return replace(said, is_decided=True, file=names[0] if is_file else "", reference=dict(loaded))


def _read(file: str) -> _Said:
    try:
        with open(file, "rb") as opened:
            return _Said(**json.load(opened))
    except (OSError, ValueError, TypeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        raise SpoolError(
            f"The spool does not say what this attempt resumes from: {reason}", where=file, hint="Retry the step"
        ) from error


def _write(file: str, said: _Said) -> None:
    try:
        os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
        write_atomically(file, json.dumps(asdict(said)).encode())
    except OSError as error:
        raise _not_noted(error, file) from error


def _not_noted(error: OSError, file: str) -> SpoolError:
    return SpoolError(
        f"What this attempt resumes from cannot be noted: {os_reason(error)}", where=file, hint=os_hint(error)
    )


def _one_that_fits(directory: str, pattern: str) -> str:
    """The one file or folder below ``directory`` whose path fits a pattern."""
    parts = Path(pattern).parts
    if not parts or Path(pattern).is_absolute() or ".." in parts:
        raise UsageError(
            f"pattern={pattern!r} is no pattern of paths in a checkpoint",
            hint="Use one such as '*.ckpt' or '**/last.pt'",
        )
    found = sorted(str(path) for path in Path(directory).glob(pattern))
    if len(found) == 1:
        return found[0]
    there = [os.path.relpath(path, directory) for path in found] or sorted(os.listdir(directory))
    names = ", ".join(there[:_NAMED]) + (f" and {len(there) - _NAMED} more" if len(there) > _NAMED else "")
    if found:
        raise UsageError(
            f"{len(found)} files or folders of the loaded checkpoint fit {pattern!r}: {names}",
            where=directory,
            hint="Give resume_path() a pattern that only one fits",
        )
    raise UsageError(
        f"No file or folder of the loaded checkpoint fits {pattern!r}: it has {names or 'nothing'}",
        where=directory,
        hint="Correct the pattern, or leave it out",
    )
