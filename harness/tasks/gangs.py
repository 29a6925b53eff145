"""A gang on this machine, without Metaflow: each node has its spool and its agent, all have one store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from async_ckpt.config import Config
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.writers import content
from harness.tasks.task import TASK, Task

SIZE = 100 << 10


class Gang:
    """Nodes of a ``Task``'s gang.

    Parameters
    ----------
    task : Task
        Its store, and where all the spools lie.
    nodes : int
        How many.
    """

    def __init__(self, task: Task, nodes: int) -> None:
        self.task, self.size = task, nodes
        self.nodes: list[Checkpointer] = []
        self.said: list[str] = []

    def start(self, attempt: int = 0) -> Gang:
        """Begin an attempt on all nodes."""
        self.nodes = [self.start_node(node, attempt) for node in range(self.size)]
        return self

    def settle(self) -> None:
        """Wait until all nodes know which start of the attempt this is: they have to agree on it."""
        self.on_all(lambda node: node.tracker.wait_for_start(60))

    def start_node(self, node: int, attempt: int = 0) -> Checkpointer:
        info = replace(TASK, attempt=attempt, node=node, nodes=self.size)
        write_lines_with(self.said.append)
        made = Checkpointer.start(self.task.root, info, self.task.store, Config.from_env(), uploader="process")
        self.task.take(made)
        return made

    def folder(self, node: int) -> Path:
        """Where a node's trainer writes."""
        folder = self.task.work / str(node)
        folder.mkdir(exist_ok=True)
        return folder

    def save(self, node: int, number: int, **options: Any) -> Reference:
        """One rank's part of collective save ``number``."""
        (self.folder(node) / f"shard-{node}").write_bytes(content(number * 1000 + node, SIZE))
        (self.folder(node) / f"step-{node}").write_text(str(number))
        given = {"metadata": {"number": number}, "collective": True, **options}
        return self.nodes[node].save(self.folder(node), **given)

    def save_all(self, number: int, nodes: Sequence[int] | None = None) -> list[Reference]:
        """Of these nodes, or all."""
        return [self.save(node, number) for node in nodes or range(self.size)]

    def on_all(self, function: Any) -> list[Any]:
        """What a function says of each node's checkpointer, all at a time, as nodes wait for each other."""
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(function, self.nodes))

    def flush(self) -> None:
        self.on_all(lambda node: node.flush(60))

    def assert_whole(self, folder: Path, number: int, nodes: int | None = None) -> None:
        """A directory with what was loaded is one save, and all of it."""
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found == dict(expected(number, nodes or self.size))


def expected(number: int, nodes: int) -> Iterator[tuple[str, bytes]]:
    """Files of collective save ``number``, by name."""
    for node in range(nodes):
        yield f"shard-{node}", content(number * 1000 + node, SIZE)
        yield f"step-{node}", str(number).encode()
