"""What Metaflow's metadata says of a task that may run elsewhere, and what the artifacts of its run refer to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from ..errors import UsageError
from .artifacts import checkpoints_in
from .progress import format_bytes

#: Artifacts that are larger than this, in bytes, are not read to look for references.
_MOST_BYTES = 1 << 30

#: A task that has not ended, and has saved nothing for so long, is taken for dead.
_DEAD = timedelta(days=1)


def is_running(pathspec: str, newest_at: datetime, now: datetime | None = None) -> bool:
    """Whether a task may be running: Metaflow's metadata knows no end of it, and it has saved something within a day.

    Parameters
    ----------
    newest_at : datetime
        When it saved its newest checkpoint.
    """
    from metaflow import Task
    from metaflow.exception import MetaflowNotFound

    if (now or datetime.now(timezone.utc)) - newest_at > _DEAD:
        return False
    try:
        return not Task(pathspec, _namespace_check=False).finished
    except MetaflowNotFound:  # Of another deployment, or removed: nobody here knows its end.
        return True


def checkpoints_of_run(pathspec: str) -> set[str]:
    """The keys of checkpoints that artifacts of a task's run refer to, this package's own lists of them excepted.

    Raises
    ------
    UsageError
        An artifact is too large to look through, or cannot be read.
    """
    found: set[str] = set()
    for name, value in _artifacts_of_run("/".join(pathspec.split("/")[:2])):
        keys = checkpoints_in({name: value})
        if keys is None:
            raise _unreadable(name, "there is too much in it")
        found |= keys
    return found


def _artifacts_of_run(run: str) -> Iterator[tuple[str, Any]]:
    from metaflow import Run
    from metaflow.exception import MetaflowNotFound

    seen: set[str] = set()
    try:
        steps = list(Run(run, _namespace_check=False))
    except MetaflowNotFound:
        return
    for artifact in (artifact for step in steps for task in step for artifact in task):
        # Steps hand on what they got: the same content, by its hash.
        if artifact.id.startswith("_") or artifact.sha in seen:
            continue
        seen.add(artifact.sha)
        if artifact.size > _MOST_BYTES:
            raise _unreadable(artifact.pathspec, f"it has {format_bytes(artifact.size)}")
        try:
            yield artifact.pathspec, artifact.data
        except Exception as error:  # What was pickled may need anything.
            raise _unreadable(artifact.pathspec, f"{type(error).__name__}: {error}") from error


def _unreadable(name: str, why: str) -> UsageError:
    return UsageError(
        f"Whether the artifact {name} refers to checkpoints cannot be told: {why}",
        hint="--referenced removes also what artifacts refer to",
    )
