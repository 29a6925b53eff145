"""A cluster of one machine: steps that Metaflow sends to Kubernetes run in pods here (``cluster/kubernetes``)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from harness.flow_runs.environments import FITTING, find_or_make
from harness.flow_runs.metaflow_env import RunningFlow, Workspace, wait_until
from harness.s3.servers import ACCESS_KEY, SECRET_KEY, S3Server

#: What Metaflow's bootstrap installs in a pod. Its ``pip install`` finds it there, and needs no network.
BOOTSTRAPPED = ("boto3", "requests")
#: Images by name: what pip is told to install, one run after the other.
IMAGES = {
    "bare": (BOOTSTRAPPED,),
    "aiobotocore": ((*BOOTSTRAPPED, *FITTING),),
    # As an image that had it before the bootstrap upgraded botocore.
    "misfit": (BOOTSTRAPPED, ("aiobotocore==2.13.0", "--no-deps"), ("aiohttp", "aioitertools", "wrapt")),
}

_CLUSTER = Path(__file__).parents[1] / "cluster"


def why_no_pods() -> str:
    """Why there can be none on this machine; empty: there can."""
    if not sys.platform.startswith("linux"):
        return "pods need Linux"
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "unshare is not installed"
    return f"namespaces cannot be had: {done.stderr.strip()}" if done.returncode else ""


def image(name: str) -> Path:
    """A virtual environment that is all of Python a pod has."""
    return find_or_make(f".venv-pod-{name}", *IMAGES[name])


class Pods:
    """Where pods run, and the workspace that sends flows there.

    Parameters
    ----------
    root : Path
        Directory of the test.
    server : S3Server
        Where the datastore is. Not rclone's, which forgets what Metaflow notes in the metadata of objects.
    prefix : str
        ``bucket/prefix`` of the datastore.
    """

    def __init__(self, root: Path, server: S3Server, prefix: str) -> None:
        self._root = root / "pods"
        self._root.mkdir(parents=True)
        secrets = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.workspace = Workspace(root / "laptop", {
            **secrets,
            "METAFLOW_DEFAULT_DATASTORE": "s3",
            "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{prefix}",
            "METAFLOW_S3_ENDPOINT_URL": server.url,
            "METAFLOW_S3_WORKER_COUNT": "2",
            "PYTHONPATH": str(_CLUSTER),
            "POD_ROOT": str(self._root),
            "POD_SECRETS": json.dumps(secrets),
        })  # fmt: skip
        del self.workspace.env["METAFLOW_ASYNC_CKPT_SPOOL_DIR"]  # A directory of this machine.

    def start_flow(self, flow: str, image: Path) -> RunningFlow:
        """Start a flow of ``harness/flows`` whose pods have the Python of an ``image``."""
        return self.workspace.start_flow(flow, env={"POD_IMAGE": str(image)})

    def started(self) -> list[Path]:
        """The folders of all pods, oldest first."""
        return sorted((path.parent for path in self._root.glob("*/pid")), key=lambda path: path.stat().st_mtime_ns)

    def output(self) -> str:
        """What all pods have said, for a person."""
        return "\n".join(f"== {pod.name}\n{(pod / 'output').read_text(errors='replace')}" for pod in self.started())

    def kill(self, number: int) -> None:
        """The machine under the n-th pod is gone."""
        os.kill(self._pid(number), signal.SIGKILL)

    def terminate(self, number: int) -> None:
        """The n-th pod's first process is asked to end: it is bash, which as PID 1 takes no notice."""
        (first,) = [pid for pid in self._processes(number) if _pid_inside(pid) == 1]
        os.kill(first, signal.SIGTERM)

    def notify(self, number: int) -> None:
        """The n-th pod's machine will be taken away: Metaflow's monitor writes a file then, and sends SIGTERM."""
        (self.started()[number] / "tmp" / "spot_termination_notice").touch()

    def terminate_step(self, number: int, flow: str) -> None:
        """As that monitor does: SIGTERM to the step's own process."""
        (step,) = [pid for pid in self._processes(number) if _is_step(pid, flow)]
        os.kill(step, signal.SIGTERM)

    def _pid(self, number: int) -> int:
        pods = wait_until(lambda: len(self.started()) > number and self.started(), f"pod {number} starts")
        return int((pods[number] / "pid").read_text())

    def _processes(self, number: int) -> list[int]:
        """All that runs in the n-th pod, by their numbers outside."""
        inside = os.readlink(f"/proc/{self._pid(number)}/ns/pid_for_children")
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/pid") == inside:
                    found.append(int(name))
        return found


def _pid_inside(pid: int) -> int:
    """A process' number in its own namespace; 0: it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def _is_step(pid: int, flow: str) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return f"{flow}.py".encode() in words and b"step" in words
    return False
