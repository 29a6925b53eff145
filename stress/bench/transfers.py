"""One transfer of an engine in a process of its own, measured, and checked: all that was to arrive has arrived."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import pattern
from .clients import ENGINES
from .clients.job import WARM_BYTES, Job, Measured
from .endpoints import BUCKET, Endpoint
from .environment import REPOSITORY, Package, flow_environment, touch_memory
from .processes import ChildrenPeak
from .servers import KEY, SECRET

_LIMIT_S = 900.0
_MANY_FILES = 100


class Failed(Exception):
    """A run that is no measurement."""


@dataclass(frozen=True)
class Case:
    """Files to transfer: name → bytes."""

    label: str
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


@dataclass
class Bench:
    """What the runs on one server share."""

    server: Endpoint
    work: str
    packages: Mapping[str, Package]
    #: Engines that are those of another checkout: its directory. There they are called ``ours``.
    checkouts: Mapping[str, str] = field(default_factory=dict)
    runs: int = 0
    downloads: list[str] = field(default_factory=list)

    def run(self, engine: str, direction: str, sizes: Mapping[str, int], directory: str, prefix: str) -> Measured:
        """One process of an engine.

        Raises
        ------
        Failed
            It says why, or not all has arrived.
        """
        kind = ENGINES["ours" if engine in self.checkouts else engine]
        package = self.packages[kind.package]
        server, warm = self.server, self.warm if direction == "up" else "seed-warm"
        job = Job(
            engine="ours" if engine in self.checkouts else engine, direction=direction, url=server.url, ca=server.ca,
            bucket=BUCKET, prefix=prefix, directory=directory, sizes=sizes, warm=warm, key=KEY, secret=SECRET,
        )  # fmt: skip
        command = [package.python, "-m", "stress.bench.clients", job.to_json()]
        touch_memory(2 * sum(sizes.values()))
        process = subprocess.Popen(
            command, cwd=self.checkouts.get(engine, REPOSITORY), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=flow_environment(package, self.work, server.environment),
        )  # fmt: skip
        with ChildrenPeak(process.pid) as children:
            try:
                said, complained = process.communicate(timeout=_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Failed(f"not done after {_LIMIT_S:g} s") from None
        if process.returncode:
            raise Failed(complained.strip()[-300:] or f"status {process.returncode}")
        found = Measured(**json.loads(said.splitlines()[-1]))
        # A tool reports its own peak: it is the only child.
        counted = 0 if kind.module == "tools" else children.bytes
        return Measured(found.seconds, found.cpu, found.rss + counted)

    @property
    def warm(self) -> str:
        return os.path.join(self.work, "warm")

    def prepare(self) -> None:
        """Make what warms engines."""
        os.mkdir(self.warm)
        pattern.write(os.path.join(self.warm, "warm"), WARM_BYTES)
        self.run("ours", "up", {"warm": WARM_BYTES}, self.warm, "seed-warm")

    def up(self, engine: str, case: Case, source: str) -> Measured:
        self.runs += 1
        prefix = f"up-{self.runs}"
        if self.server.sink:
            self.server.sink.reset()
        try:
            found = self.run(engine, "up", case.sizes, source, prefix)
            arrived = self.server.sizes(prefix)
            if not case.sizes.items() <= arrived.items():
                raise Failed("not all objects are in the store")
            if self.server.sink and self.server.sink.stats()["received"] < case.bytes:
                raise Failed("not all bytes came to the store")
        finally:
            self.server.remove(prefix)
            self.server.remove(f"{prefix}-warm")
        return found

    def down(self, engine: str, case: Case, prefix: str) -> Measured:
        self.runs += 1
        directory = os.path.join(self.work, f"down-{self.runs}")
        os.mkdir(directory)
        try:
            found = self.run(engine, "down", case.sizes, directory, prefix)
            for name, size in case.sizes.items():
                path = os.path.join(directory, name)
                if not os.path.exists(path) or not pattern.is_pattern(path, size):
                    raise Failed(f"{name} is not what is in the store")
        finally:
            self.downloads += [directory, f"{directory}-warm"]
            if len(case.sizes) < _MANY_FILES:
                self.remove_downloads()
        return found

    def remove_downloads(self) -> None:
        """Many files are removed when a case is done: ext4 takes longer to make new ones while it remembers them."""
        for path in self.downloads:
            shutil.rmtree(path, ignore_errors=True)
        self.downloads.clear()
