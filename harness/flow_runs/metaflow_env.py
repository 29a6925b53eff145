"""Runs real flows, each test in a world of its own: datastore, Metaflow home, spools and working directory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
FLOWS = Path(__file__).resolve().parents[1] / "flows"
#: Longer than anything takes on a loaded machine; a test that needs more than its own time-out is stuck.
PATIENCE_S = 60.0

#: What could tie a flow to the machine, the shell or the task the tests themselves run in.
_FOREIGN = ("METAFLOW", "ASYNC_CKPT", "AWS_", "PYTHONPATH", "PYTHONWARNINGS", "PYTEST")

_RESULTS = """
import json, sys
from metaflow import Run, namespace
namespace(None)
run = Run(sys.argv[1])
found = {}
for step in run:
    for task in step:
        data = {}
        for artifact in task:
            try:
                data[artifact.id] = artifact.data
            except AttributeError:  # Of a class of the flow's own file.
                pass
        for name in ("_task_checkpoints", "_task_latest_checkpoint"):
            if name in task:
                data[name] = task[name].data
        found.setdefault(step.id, []).append({
            "pathspec": task.pathspec, "successful": task.successful, "attempt": task.current_attempt,
            "artifacts": data, "metadata": [[m.name, m.value] for m in task.metadata],
        })
print(json.dumps(found, default=repr))
"""


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = PATIENCE_S) -> T:
    """Return the condition's first true answer; fail when there is none in time."""
    until = time.monotonic() + deadline_s
    while not (answer := condition()):
        assert time.monotonic() < until, f"Not within {deadline_s:g} s: {what}"
        time.sleep(0.05)
    return answer


@dataclass
class TaskResult:
    """What Metaflow's client tells about one task, as JSON."""

    pathspec: str
    successful: bool
    attempt: int
    artifacts: dict[str, Any]
    metadata: list[list[str]]

    def metadata_of(self, field_name: str) -> list[str]:
        return [value for name, value in self.metadata if name == field_name]


@dataclass
class FlowRun:
    """One finished run of a flow."""

    returncode: int
    output: str
    pathspec: str
    env: Workspace = field(repr=False)

    def tasks(self) -> dict[str, list[TaskResult]]:
        """Step → its tasks."""
        return self.env.tasks_of(self.pathspec)


class Workspace:
    """An isolated Metaflow.

    Parameters
    ----------
    root : Path
        Directory of the test.
    settings : mapping
        Further environment variables.
    """

    def __init__(self, root: Path, settings: Mapping[str, str] | None = None) -> None:
        self.root, self.spool, self.cwd, self.store = root, root / "spool", root / "cwd", root / "store"
        for directory in (self.spool, self.cwd, self.store, root / "home"):
            directory.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self.env = {
            **inherited,
            "METAFLOW_HOME": str(root / "home"),
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.store),
            "METAFLOW_DEFAULT_DATASTORE": "local",
            "METAFLOW_DEFAULT_METADATA": "local",
            "METAFLOW_ASYNC_CKPT_SPOOL_DIR": str(self.spool),
            "HOME": str(root / "home"),
            "USER": "tester",
            "PYTHONUNBUFFERED": "1",
            **(settings or {}),
        }

    def environment(self, python: str = sys.executable, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment in which ``python`` is also what a bare ``python`` on PATH means."""
        return {**self.env, "PATH": os.pathsep.join([os.path.dirname(python), os.environ["PATH"]]), **(extra or {})}

    def take_away(self, *modules: str) -> None:
        """From now on, as if these were not installed."""
        folder = self.root / "taken-away"
        folder.mkdir(exist_ok=True)
        for name in modules:
            (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n")
        self.env["PYTHONPATH"] = str(folder)

    def start_flow(
        self, flow: str | Path, *arguments: str, python: str = sys.executable, env: Mapping[str, str] | None = None,
        top: tuple[str, ...] = (),
    ) -> RunningFlow:  # fmt: skip
        """Start ``flow`` (a file, or a name in ``harness/flows``) with ``arguments``, by default ``run``."""
        file = flow if isinstance(flow, Path) else FLOWS / f"{flow}.py"
        arguments = arguments or ("run",)
        identity = self.root / f"run-id-{time.monotonic_ns()}"
        command = [python, str(file), "--no-pylint", *top, *arguments, "--run-id-file", str(identity)]
        return RunningFlow(self, file, command, identity, self.environment(python, env))

    def run_flow(self, flow: str | Path, *arguments: str, succeeds: bool = True, **options: Any) -> FlowRun:
        """Run a flow to its end and check how it ended."""
        run = self.start_flow(flow, *arguments, **options).finish()
        assert (run.returncode == 0) is succeeds, f"exit status {run.returncode}\n{run.output}"
        return run

    def run_python(
        self,
        code: str,
        *arguments: str,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a piece of code in a process of its own."""
        return self.run_command([python, "-c", code, *arguments], python=python, env=env, check=check)

    def run_command(
        self,
        command: list[str],
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment(python, env), cwd=self.cwd, text=True, capture_output=True,
            timeout=PATIENCE_S * 2, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def query(
        self, code: str, *arguments: str, python: str = sys.executable, env: Mapping[str, str] | None = None
    ) -> Any:
        """Run code that prints JSON on its last line."""
        return json.loads(self.run_python(code, *arguments, python=python, env=env).stdout.strip().splitlines()[-1])

    def tasks_of(self, run: str) -> dict[str, list[TaskResult]]:
        """Step → its tasks, of the run with this pathspec."""
        return {step: [TaskResult(**task) for task in tasks] for step, tasks in self.query(_RESULTS, run).items()}

    # -- what is left ----------------------------------------------------------------------------------------------

    def agents(self) -> list[int]:
        """Processes of agents and uploaders that work for a spool of this workspace."""
        found = []
        for pid, command in _processes():
            if (b"async_ckpt.agent" in command or b"async_ckpt.task.socket_saver" in command) and str(
                self.root
            ).encode() in command:
                found.append(pid)
        return found

    def spooled(self) -> list[str]:
        """Files in the spools, without the folders."""
        return [str(path.relative_to(self.spool)) for path in self.spool.rglob("*") if not path.is_dir()]

    def spool_directories(self) -> list[Path]:
        return [path for path in self.spool.glob("async-ckpt-*/*") if path.is_dir()]

    def assert_clean(self) -> None:
        """No agent goes on running and no spool stays, once what was saved is in the store."""
        wait_until(lambda: not self.agents(), "the agents of the flow exit")
        assert self.spool_directories() == []

    def kill_leftovers(self) -> None:
        for pid in self.agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class RunningFlow:
    """A flow that runs in a process of its own."""

    def __init__(
        self, env: Workspace, file: Path, command: list[str], identity: Path, environment: dict[str, str]
    ) -> None:
        self._env, self._file, self._identity = env, file, identity
        self._log = env.root / f"{identity.name}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=env.cwd, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def finish(self, deadline_s: float = 150.0) -> FlowRun:
        try:
            self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"The flow did not end within {deadline_s:g} s:\n{self.output}") from None
        run_id = self._identity.read_text() if self._identity.exists() else ""
        return FlowRun(self.process.returncode, self.output, f"{self._class_name()}/{run_id}", self._env)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the runtime and its tasks alike."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the runtime and its tasks; agents are in sessions of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _class_name(self) -> str:
        lines = self._file.read_text().splitlines()
        return next(line.split("(")[0].removeprefix("class ") for line in lines if line.endswith("(FlowSpec):"))


def _processes() -> Iterator[tuple[int, bytes]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(name), Path("/proc", name, "cmdline").read_bytes()
