"""What an engine is told to do, and how it is measured."""

from __future__ import annotations

import abc
import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import processes

#: Part size of all engines that are tuned: the one that ours begins with.
PART_BYTES = 16 << 20
#: Requests in flight of all engines that are tuned.
IN_FLIGHT = 16


@dataclass(frozen=True)
class Job:
    """One transfer.

    Parameters
    ----------
    engine : str
        A key of ``clients.__main__.ENGINES``.
    direction : str
        ``"up"``: the files of ``directory`` become objects under ``prefix``. ``"down"``: the other way.
    url, ca : str
        Of the store; ``ca`` is the file of the authority to trust, with TLS.
    sizes : mapping
        The files, directly in ``directory``: name → bytes.
    warm : str
        ``down``: a prefix that holds one small object, ``warm``. ``up``: a directory that holds one such file.
    """

    engine: str
    direction: str
    url: str
    ca: str | None
    bucket: str
    prefix: str
    directory: str
    sizes: Mapping[str, int]
    warm: str
    key: str
    secret: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))

    @property
    def tls(self) -> bool:
        return self.url.startswith("https:")

    @property
    def region(self) -> str:
        return "us-east-1"

    def client_params(self) -> dict[str, Any]:
        """For ``create_client`` of botocore and what stands on it."""
        return {
            "endpoint_url": self.url, "region_name": self.region, "verify": self.ca,
            "aws_access_key_id": self.key, "aws_secret_access_key": self.secret,
        }  # fmt: skip

    def paths(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> list[tuple[str, str, int]]:
        """(file, key, size) of each file."""
        return [(os.path.join(directory, name), f"{prefix}/{name}", size) for name, size in sizes.items()]


@dataclass(frozen=True)
class Measured:
    """``seconds`` of wall and ``cpu`` time, and ``rss``: peak bytes of the process (its children are seen from
    outside).
    """

    seconds: float
    cpu: float
    rss: int


class Engine(abc.ABC):
    """Made, and warmed by the transfer of one small file, before anything is timed."""

    warms = True

    def __init__(self, job: Job) -> None:
        self.job = job

    @abc.abstractmethod
    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        """Every file of the directory becomes an object under the prefix."""

    @abc.abstractmethod
    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        """Every object under the prefix becomes a new file in the directory."""

    def run(self) -> Measured:
        job = self.job
        if self.warms and job.direction == "up":
            self.up(job.warm, f"{job.prefix}-warm", {"warm": os.path.getsize(os.path.join(job.warm, "warm"))})
        elif self.warms:
            aside = f"{job.directory}-warm"
            os.mkdir(aside)
            self.down(aside, job.warm, {"warm": WARM_BYTES})
        before, began = cpu_seconds(), time.perf_counter()
        (self.up if job.direction == "up" else self.down)(job.directory, job.prefix, job.sizes)
        seconds = time.perf_counter() - began
        return Measured(seconds, cpu_seconds() - before, self.peak())

    def peak(self) -> int:
        """Peak resident bytes of what does the work."""
        return processes.peak_bytes(os.getpid())


#: Size of the object that warms an engine.
WARM_BYTES = 1 << 10


def cpu_seconds() -> float:
    """User and system time of this process and of all that it has started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = sum(processes.cpu_seconds(pid) for pid in processes.descendants(os.getpid()))
    return living + sum(usage.ru_utime + usage.ru_stime for usage in used)
