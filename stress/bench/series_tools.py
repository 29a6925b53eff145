"""What brings a directory into a store, and how many bytes it sends for it: this package, the incumbent, and programs
that find what did not change. Each is a context manager that yields a ``Save``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .dedup import new_blocks
from .environment import Package, memory_directory, tools
from .servers import KEY, SECRET, rclone
from .targets import SINK, counted_target
from .tasks import task

_PIECE_BYTES = 1 << 20
_END_S = 1800


@dataclass(frozen=True)
class Saved:
    """One checkpoint: ``seconds`` until it was in the store, ``sent`` bytes, and those that the store copied by itself
    in so many requests.
    """

    seconds: float
    sent: int
    copies: int = 0


#: Saves one directory, and returns when the store has it.
Save = Callable[[str], Saved]


@contextlib.contextmanager
def flow(package: Package, work: str, rate: float, environment: dict[str, str] | None = None) -> Iterator[Save]:
    """A Metaflow task of this package or of the incumbent; the server counts the bodies. ``rate``: of the network in
    bytes a second; 0: as fast as it goes.
    """
    own = os.path.join(work, f"flow-{package.name}")
    os.makedirs(own)
    with counted_target(SINK, own, "--network-mbps", str(rate * 8 / 1e6)) as (store, server):
        assert server is not None
        with task(package, store, own, environment=environment) as running:

            def save(path: str) -> Saved:
                before, began = server.stats(), time.monotonic()
                running.do("save", folder=path)
                running.do("drain")
                seconds, after = time.monotonic() - began, server.stats()
                copies = [
                    sum(s["requests"].get(k, 0) for k in ("CopyObject", "UploadPartCopy")) for s in (before, after)
                ]
                return Saved(seconds, after["received"] - before["received"], copies[1] - copies[0])

            yield save


@contextlib.contextmanager
def restic(rate: float) -> Iterator[Save]:
    """A repository of restic's in memory, with its compression; what it grows by is what goes to a store."""
    with memory_directory() as directory:
        repository = os.path.join(directory, "repository")
        environment = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": os.path.join(directory, "cache")}
        limit = ["--limit-upload", str(int(rate / 1024))] if rate else []
        command = ["restic", "--quiet", "-r", repository]
        _run([*command, "init"], environment)
        yield _growing(repository, lambda path: _run([*command, *limit, "backup", path], environment))


@contextlib.contextmanager
def borg() -> Iterator[Save]:
    """The same of BorgBackup's."""
    with memory_directory() as directory:
        repository = os.path.join(directory, "repository")
        environment = {**os.environ, "BORG_BASE_DIR": directory, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        _run(["borg", "init", "-e", "none", repository], environment)
        yield _growing(
            repository,
            lambda path: _run(["borg", "create", f"{repository}::{os.path.basename(path)}", path], environment),
        )


def _growing(repository: str, backup: Callable[[str], Any]) -> Save:
    def save(path: str) -> Saved:
        before, began = new_blocks(repository), time.monotonic()
        backup(path)
        return Saved(time.monotonic() - began, new_blocks(repository) - before)

    return save


@contextlib.contextmanager
def rclone_copy() -> Iterator[Save]:
    """``rclone copy --copy-dest`` of the directory before, by checksums, to ``rclone serve s3``; bytes of its TCP."""
    program = os.path.join(tools().bin, "rclone")
    with memory_directory() as directory:
        os.mkdir(os.path.join(directory, "bucket"))
        with rclone(directory) as url, relay(int(url.rpartition(":")[2])) as (port, sent):
            settings = {
                "TYPE": "s3", "PROVIDER": "Rclone", "ENDPOINT": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": KEY,
                "SECRET_ACCESS_KEY": SECRET,
            }  # fmt: skip
            environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
            environment |= {f"RCLONE_CONFIG_STORE_{name}": value for name, value in settings.items()}
            earlier: list[str] = []

            def save(path: str) -> Saved:
                target = f"store:bucket/{os.path.basename(path)}"
                before, began = sent(), time.monotonic()
                known = [f"--copy-dest={earlier[-1]}"] if earlier else []
                _run([program, "copy", "--checksum", *known, path, target], environment)
                earlier.append(target)
                return Saved(time.monotonic() - began, sent() - before)

            yield save


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_END_S, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def relay(port: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """Passes connections on to a port of loopback; yields its own port, and how many bytes clients have sent so far."""
    counts: dict[int, int] = {}

    def pump(source: socket.socket, target: socket.socket, number: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                if number is not None:
                    counts[number] += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket, number: int) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client, None), daemon=True)
            back.start()
            pump(client, server, number)
            back.join()

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                number = len(counts)
                counts[number] = 0
                threading.Thread(target=serve, args=(client, number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1], lambda: sum(list(counts.values()))
