"""The part of the API that Metaflow uses. A job is one pod: the container's command in namespaces of its own.

What a pod here has in common with a real one: bash is PID 1, everything dies with it, /tmp is empty and its own, the
environment is what the job says and the cluster's secrets, ``python`` is the image's, and nothing else is installed.

``POD_ROOT`` names the directory where pods leave a folder each, with ``pid`` (kill it, and the pod is gone) and
``output``; ``POD_IMAGE`` a virtual environment; ``POD_SECRETS`` a JSON object of environment variables.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: The image is seen at /tmp/image; what the pod writes lies in the folder.
_ENTER = (
    'mkdir -p "$0/tmp/image" "$0/tmp/work" && mount --bind "$1" "$0/tmp/image" && mount --rbind "$0/tmp" /tmp'
    ' && cd /tmp/work && shift && exec "$@"'
)

_numbers = itertools.count()
_pods: dict[str, Pod] = {}


class rest:
    class ApiException(Exception):
        status, body, reason = 0, None, ""


def __getattr__(name: str) -> Any:
    """All the V1… that only hold what they are given."""
    if name.startswith("V1"):
        return SimpleNamespace
    raise AttributeError(name)


class Pod:
    """One container, from its start on."""

    def __init__(self, name: str, container: Any) -> None:
        self.name, self.folder = name, Path(os.environ["POD_ROOT"], name)
        self.folder.mkdir()
        given = {variable.name: getattr(variable, "value", name) for variable in container.env}
        environment = {
            "PATH": "/tmp/image/bin:/usr/local/bin:/usr/bin:/bin", "HOME": "/root",
            **json.loads(os.environ["POD_SECRETS"]), **given,
        }  # fmt: skip
        enter = ["bash", "-c", _ENTER, str(self.folder), os.environ["POD_IMAGE"], *container.command]
        with open(self.folder / "output", "wb") as output:
            self._process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *enter],
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        (self.folder / "environment").write_text(json.dumps(given))
        temporary = self.folder / "pid.new"
        temporary.write_text(str(self._process.pid))
        temporary.rename(self.folder / "pid")

    @property
    def status(self) -> dict[str, Any]:
        code = self._process.poll()
        if code is None:
            return {"phase": "Running", "container_statuses": [{"state": {"running": {"started_at": "then"}}}]}
        ended = {
            "exit_code": code if code >= 0 else 128 - code, "finished_at": "now",
            "reason": "Error" if code else "Completed",
        }  # fmt: skip
        return {"phase": "Failed" if code else "Succeeded", "container_statuses": [{"state": {"terminated": ended}}]}

    def kill(self) -> None:
        self._process.kill()


class _Answer:
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def to_dict(self) -> dict[str, Any]:
        return self._data


class BatchV1Api:
    """Jobs."""

    def create_namespaced_job(self, body: Any, namespace: str) -> _Answer:
        name = f"{body.metadata.generate_name}{os.getpid()}-{next(_numbers)}"
        (container,) = body.spec.template.spec.containers
        _pods[name] = Pod(name, container)
        return self.read_namespaced_job(name, namespace)

    def read_namespaced_job(self, name: str, namespace: str) -> _Answer:
        phase = _pods[name].status["phase"]
        status = {"active": phase == "Running", "succeeded": phase == "Succeeded", "failed": phase == "Failed"}
        metadata = {"name": name, "uid": name, "namespace": namespace}
        return _Answer({"metadata": metadata, "status": status, "spec": {"parallelism": 1}})

    def patch_namespaced_job(self, name: str, **_: Any) -> None:
        _pods[name].kill()

    def delete_namespaced_job(self, name: str, **_: Any) -> None:
        _pods[name].kill()


class CoreV1Api:
    """Pods."""

    def list_namespaced_pod(self, namespace: str, label_selector: str, **_: Any) -> _Answer:
        pod = _pods[label_selector.removeprefix("job-name=")]
        return _Answer({"items": [{"metadata": {"name": pod.name}, "status": pod.status}]})
