"""Many savers at once: the task, its threads, its forked children, its subprocesses (this module as a program)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_ckpt.task.checkpointer import Checkpointer
from harness.files.writers import content

#: What each saver writes: a file that is linked, and one that is packed.
BIG, SMALL = 300 << 10, 100


def save_some(checkpointer: Checkpointer, folder: Path, saver: int, count: int) -> list[dict[str, Any]]:
    """Save ``count`` times from a directory of one's own, rewritten in place each time."""
    folder.mkdir(exist_ok=True)
    saved = []
    for number in range(count):
        (folder / "weights").write_bytes(content(saver * 1000 + number, BIG))
        (folder / "step").write_bytes(content(saver * 1000 + number, SMALL))
        reference = checkpointer.save(folder, metadata={"number": saver * 1000 + number})
        saved.append(dict(reference))
    return saved


def as_stored(store: str, reference: Mapping[str, Any]) -> bool:
    """Whether the store holds what this saver wrote."""
    number, folder = reference["metadata"]["number"], Path(store, reference["key"])
    weights, step = (folder / "weights").read_bytes(), (folder / "step").read_bytes()
    return weights == content(number, BIG) and step == content(number, SMALL)


class Subprocess:
    """A saver in a process of its own, started by exec."""

    def __init__(self, environment: Mapping[str, str], folder: Path, saver: int, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(saver), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ready(self) -> Subprocess:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def references(self) -> list[dict[str, Any]]:
        output, _ = self._process.communicate()
        assert self._process.returncode == 0
        found: list[dict[str, Any]] = json.loads(output)
        return found


class Forked:
    """A saver in a forked child, as data loaders are made."""

    def __init__(self, checkpointer: Checkpointer, folder: Path, saver: int, count: int) -> None:
        read, write = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            status = 1
            try:
                os.close(read)
                data = json.dumps(save_some(checkpointer, folder, saver, count)).encode()
                with os.fdopen(write, "wb") as file:
                    file.write(data)
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        self._read = read

    def references(self) -> list[dict[str, Any]]:
        with os.fdopen(self._read, "rb") as file:
            data = file.read()
        _, status = os.waitpid(self._pid, 0)
        assert status == 0, "the forked saver failed"
        found: list[dict[str, Any]] = json.loads(data)
        return found


class Thread:
    """A saver in a thread."""

    def __init__(self, checkpointer: Checkpointer, folder: Path, saver: int, count: int) -> None:
        self._found: list[dict[str, Any]] = []
        self._thread = threading.Thread(
            target=lambda: self._found.extend(save_some(checkpointer, folder, saver, count))
        )
        self._thread.start()

    def references(self) -> list[dict[str, Any]]:
        self._thread.join()
        return self._found


def _main(folder: str, saver: str, count: str) -> None:
    checkpointer = Checkpointer.from_environment()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(save_some(checkpointer, Path(folder), int(saver), int(count))))
    checkpointer.close(clean=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
