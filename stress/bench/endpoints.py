"""S3 servers for engines to transfer to: what points them there, what arrived, and how to be rid of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .environment import memory_directory, ours
from .servers import PLAIN_BODIES, Sink, free_port, rclone, s3_client, s3_environment, serving, sink

NAMES = ("rclone", "sink", "sink-tls", "sink-tls-20ms", "moto")
#: How the sinks differ.
SINKS = {"sink": [], "sink-tls": ["--tls"], "sink-tls-20ms": ["--tls", "--latency-ms", "20"]}
BUCKET = "bench"


@dataclass(frozen=True)
class Endpoint:
    """A running server.

    Parameters
    ----------
    root : str or None
        The directory that has a folder for each bucket, where there is one.
    sink : Sink or None
        It, if it is one.
    """

    name: str
    url: str
    ca: str | None = None
    root: str | None = None
    sink: Sink | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For engines that take their settings from there."""
        trust = {"AWS_CA_BUNDLE": self.ca, "METAFLOW_S3_VERIFY_CERTIFICATE": self.ca} if self.ca else {}
        return s3_environment(self.url) | trust | self.settings

    @property
    def keeps(self) -> bool:
        """Whether it needs memory for what it gets."""
        return self.sink is None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Last part of each name below the prefix → bytes."""
        if self.root is not None:
            folder = os.path.join(self.root, BUCKET, prefix)
            return {
                name: os.path.getsize(os.path.join(where, name))
                for where, _, names in os.walk(folder)
                for name in names
            }
        return {item["Key"].rpartition("/")[2]: item["Size"] for item in self._listed(prefix)}

    def remove(self, prefix: str) -> None:
        """Forget the objects below the prefix."""
        if self.root is not None:
            # Folders stay: the server remembers them.
            for where, _, names in os.walk(os.path.join(self.root, BUCKET, prefix)):
                for name in names:
                    os.unlink(os.path.join(where, name))
        elif self.keeps:
            for item in self._listed(prefix):
                self.client().delete_object(Bucket=BUCKET, Key=item["Key"])

    def client(self) -> Any:
        """One of boto3's, to look after the server with."""
        return s3_client(self.environment, verify=self.ca)

    def _listed(self, prefix: str) -> list[dict[str, Any]]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [item for page in pages for item in page.get("Contents", ())]


@contextlib.contextmanager
def endpoint(name: str) -> Iterator[Endpoint]:
    """Start one of ``NAMES``, with the bucket ``BUCKET``; what it keeps lies in memory."""
    if name in SINKS:
        with sink(*SINKS[name]) as server:
            yield Endpoint(name, server.url, server.ca, sink=server)
    elif name == "moto":
        with _moto() as url:
            server = Endpoint(name, url)
            server.client().create_bucket(Bucket=BUCKET)
            yield server
    else:
        with memory_directory() as directory, rclone(directory) as url:
            os.mkdir(os.path.join(directory, BUCKET))
            yield Endpoint(name, url, root=directory, settings=PLAIN_BODIES)


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    port = free_port()
    program = os.path.join(ours().bin, "moto_server")
    with serving([program, "-p", str(port)], port) as url:
        yield url
