"""The task that checkpoints belong to: its identifiers, and the versions that its saves get."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .keys import MAX_DIGITS, ROOT, metadata_folder, short_hash

TAG_PREFIX = "checkpoint:"
#: How many other versions have room between two collective saves; see ``TaskInfo.collective_version``.
COLLECTIVE_STEP = 1_000_000
#: How many collective saves fit between two restarts of the ranks, and how many restarts into one start of an attempt.
GENERATION_STEP = 100_000
GENERATIONS = 100
#: From one start of an attempt to the next, counters of versions go on by so much.
START_STEP = COLLECTIVE_STEP * GENERATION_STEP * GENERATIONS


@functools.lru_cache(maxsize=256)
def pathspec_hash(pathspec: str) -> str:
    """What stands for a task in the names of its objects."""
    return short_hash(pathspec, 8)


def scope_of(namespace_or_tag_value: str) -> str:
    """The scope of a namespace, or of the value of a run tag ``checkpoint:<value>``: 12 hex digits."""
    return hashlib.sha256(namespace_or_tag_value.encode()).hexdigest()[:12]


def step_identifier(step: str) -> str:
    """Task identifier of a task that is not in a foreach: the same for every run of the step."""
    return short_hash(step, 12)


def foreach_identifier(stack: Sequence[tuple[int, Any]], *, gang: bool = False) -> str:
    """Task identifier of one split.

    Parameters
    ----------
    stack : sequence of (int, Any)
        Index and value of each foreach, outermost first. For a gang, the innermost value is replaced by 0, the control
        task's index, so that all its ranks have one identifier.
    gang : bool
        Whether the step is ``@parallel``.
    """
    salt = "parallel-task-entropy" if gang else "foreach-task-entropy"
    hashes = [_value_hash(index, value) for index, value in (stack[:-1] if gang else stack)]
    hashes += [short_hash(0, 64)] if gang else []
    return hashlib.sha256("".join([*hashes, short_hash(short_hash(salt, 64), 64)]).encode()).hexdigest()[:12]


def _value_hash(index: int, value: Any) -> str:
    """Values that are not JSON (the peer refuses them) are told apart by their ``repr``, or by their index where that
    is not the same in every process.
    """
    try:
        return short_hash(value, 64)
    except (TypeError, ValueError):
        text = repr(value)
        varies = isinstance(value, (set, frozenset)) or re.search(r" at 0x[0-9a-f]+", text)
        return short_hash(["index", index] if varies else text, 64)


@dataclass(frozen=True)
class TaskInfo:
    """The task that checkpoints belong to.

    Parameters
    ----------
    flow, run, step, task : str
        The parts of the pathspec.
    attempt : int
        Counted from 0.
    scope, identifier : str
        12 hex digits each; see ``scope_of``, ``step_identifier``, ``foreach_identifier``.
    node, nodes : int
        Of a gang, whose control task ``task`` is: which node this is, and how many there are.
    """

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    scope: str
    identifier: str
    node: int = 0
    nodes: int = 1

    @property
    def pathspec(self) -> str:
        return f"{self.flow}/{self.run}/{self.step}/{self.task}"

    @property
    def pathspec_hash(self) -> str:
        return pathspec_hash(self.pathspec)

    @property
    def task_folder(self) -> str:
        """Folder of the metadata of this task's checkpoints, and of its ``latest``."""
        return metadata_folder(self.pathspec)

    @property
    def scope_folder(self) -> str:
        """Folder of the metadata of this step's checkpoints in this scope, and of their ``latest``."""
        return f"{ROOT}/artifact_metadata/{self.flow}/{self.step}/{self.scope}/{self.identifier}"

    def version(self, counter: int) -> int:
        """The version of this node's save number ``counter``: no two nodes of a gang give out the same."""
        return counter * self.nodes + self.node

    def counter(self, version: int) -> int:
        """The least number that no save has had yet, where one has this version."""
        return version // self.nodes + 1

    def start_of(self, version: int) -> int:
        """Which start of an attempt has given out this version."""
        return version // (START_STEP * self.nodes)

    @property
    def most_starts(self) -> int:
        """So many starts of an attempt have versions that fit ``MAX_DIGITS``."""
        return int(10**MAX_DIGITS) // (START_STEP * self.nodes)

    def collective_version(self, number: int) -> int:
        """The version of the gang's collective save number ``number``, from 1: the same on each node, whatever they
        have saved by themselves in between.
        """
        return number * COLLECTIVE_STEP * self.nodes

    def key(self, name: str, version: int, *, attempt: int | None = None) -> str:
        """Key of a checkpoint of this task."""
        attempt = self.attempt if attempt is None else attempt
        stem = f"{self.pathspec_hash}.{attempt}.{name}.{version}"
        return f"{ROOT}/artifacts/{self.flow}/{self.step}/{self.scope}/{self.identifier}/{stem}"
