"""What the agent needs for checkpoints of growing size: ``python -m stress.bench.memory [--quick] [--size GIB]``.

One checkpoint of one file, saved without Metaflow and uploaded by the real agent to the sink. Files are sparse: a
twentieth is data, the rest holes, which are read and sent like any other bytes but need no disk. Every process of the
agent is watched. A small checkpoint goes before, so that starting the processes is not measured.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer

from . import pattern, processes, results
from .environment import caveats, work_directory
from .servers import Sink, s3_environment, sink

COMMAND = "python -m stress.bench.memory"
SIZES_GIB = (1, 10, 50)
QUICK_GIB = (1, 2)

_GIB = 1 << 30
_DATA_BYTES, _EVERY_BYTES = 16 << 20, 320 << 20
_INTERVAL_S = 0.2


class Watch:
    """Peak memory and CPU time of an agent and of all it has started, also of what is gone meanwhile."""

    def __init__(self, agent: int) -> None:
        self._agent = agent
        self._peaks: dict[int, int] = {}
        self._cpu: dict[int, float] = {}
        self._begin: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._look()
        self._begin = dict(self._cpu)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def cpu_seconds(self) -> float:
        """Since the block began."""
        return sum(seconds - self._begin.get(pid, 0.0) for pid, seconds in self._cpu.items())

    @property
    def agent_bytes(self) -> int:
        return self._peaks[self._agent]

    @property
    def uploaders_bytes(self) -> int:
        """Of all processes of the data plane together."""
        return sum(peak for pid, peak in self._peaks.items() if pid != self._agent)

    @property
    def uploaders(self) -> int:
        return len(self._peaks) - 1

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        for pid in [self._agent, *processes.descendants(self._agent)]:
            self._peaks[pid] = max(self._peaks.get(pid, 0), processes.peak_bytes(pid))
            self._cpu[pid] = max(self._cpu.get(pid, 0.0), processes.cpu_seconds(pid, children=False))


def write(path: str, size: int) -> None:
    """A sparse file with some data everywhere, and at its end."""
    with open(path, "wb", buffering=0) as file:
        file.truncate(size)
        for offset in range(0, size, _EVERY_BYTES):
            os.pwrite(file.fileno(), pattern.piece()[: min(_DATA_BYTES, size - offset)], offset)
        os.pwrite(file.fileno(), b"end", size - 3)


def measure(size: int, server: Sink) -> dict[str, Any]:
    """Save one checkpoint of ``size`` bytes with an agent of its own, and wait until it is in the store."""
    scope, identifier = layout.scope_of("user:bench"), layout.step_identifier("start")
    task = layout.TaskInfo("Bench", str(size), "start", "memory", 0, scope, identifier)
    store = StoreSpec(
        "metaflow-s3", "s3://bench/memory", {"client_params": {"endpoint_url": server.url, "verify": server.ca}}
    )
    with work_directory() as work:
        path = os.path.join(work, "state.bin")
        checkpointer = Checkpointer.start(
            os.path.join(work, "spools"), task, store, Config.from_env(), uploader="process"
        )
        try:
            write(path, 1 << 20)
            checkpointer.save(path)
            checkpointer.flush()
            os.unlink(path)
            write(path, size)
            server.reset()
            with Watch(checkpointer.status()["pid"]) as watch:
                began = time.perf_counter()
                checkpointer.save(path)
                checkpointer.flush()
                seconds = time.perf_counter() - began
        finally:
            checkpointer.close(clean=True)
    received = server.stats()["received"]
    if received < size:
        raise SystemExit(f"Only {received} of {size} bytes came to the store")
    gib = size / _GIB
    return {
        "GiB": size // _GIB, "seconds": seconds, "GiB/s": gib / seconds, "cpu s/GiB": watch.cpu_seconds / gib,
        "uploaders": watch.uploaders, "uploaders' peak MiB": watch.uploaders_bytes >> 20,
        "agent's peak MiB": watch.agent_bytes >> 20,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_GIB} GiB instead of {SIZES_GIB}")
    parser.add_argument("--size", action="append", type=int, help="GiB; only this one (may be repeated)")
    parser.add_argument("--tls", action="store_true", help="over TLS")
    options = parser.parse_args(arguments)
    rows, notes = [], caveats(quick=options.quick)
    with sink(*(["--tls"] if options.tls else [])) as server:
        os.environ.update(s3_environment(server.url))
        for size in options.size or (QUICK_GIB if options.quick else SIZES_GIB):
            rows.append(measure(size * _GIB, server))
            print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    notes += [
        "One file, saved and flushed; it is sparse (one twentieth is data). *peak*: what was resident at most, of all "
        "uploaders together, and of the agent that has the leases and the queue. The uploaders run at idle priority "
        "and share the machine's cores with the server.",
    ]
    results.record("memory_tls" if options.tls else "memory", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()
