"""A real flow that saves to S3 over TLS, in every weather there is; and whether all that it saved can be loaded.

    for case in cases(QUICK):
        outcome = play(case, QUICK, folder, server)
        assert outcome.wrong == []

Between the flow and a real server stands a ``TlsFront``. What the flow saved is loaded by another process, straight
from the server, and compared with the digests that the flow wrote down as it saved.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.flow_runs.metaflow_env import FlowRun, Workspace, wait_until
from harness.s3 import tls_front
from harness.s3.servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from harness.s3.tls_front import TlsFront

#: How long a flow without trouble may take on a loaded machine, in seconds.
USUAL_S = 60.0

#: How long an outage may last without a word in the log, in seconds.
SAID_AFTER_S = 45.0

#: Counted beside what the front counts.
SEALED = "provider asked in vain"

HOME_REGION, OTHER_REGION = "us-east-1", "eu-west-1"

#: Prints, of an attempt of a task: number -> path -> SHA-256 of what was loaded, or the error's words.
_LOAD = """
import hashlib, json, os, sys
from metaflow import Checkpoint
pathspec, attempts, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
checkpoint, found = Checkpoint(), {}
for attempt in range(attempts):
    for reference in checkpoint.list(task=pathspec, attempt=attempt):
        number = reference["metadata"]["number"]
        target = os.path.join(folder, str(number))
        try:
            assert reference["state"] == "COMMITTED", reference["state"]
            checkpoint.load(reference, target)
        except Exception as error:
            found[number] = repr(error)
            continue
        found[number] = {
            os.path.relpath(os.path.join(where, name), target):
                hashlib.sha256(open(os.path.join(where, name), "rb").read()).hexdigest()
            for where, _, names in os.walk(target) for name in names
        }
print(json.dumps(found))
"""

#: A provider of credentials that has none while its file is away.
_VAULT = """\
cat "$1" 2>/dev/null && exit
echo >>"$1.refused"
echo "vault is sealed" >&2
exit 1
"""


@dataclass(frozen=True)
class Pace:
    """How much is saved, and how long things last, in seconds.

    Parameters
    ----------
    saves : int
        How many checkpoints.
    limit_s : float
        What ``connect_timeout_s``, ``answer_timeout_s`` and ``stall_timeout_s`` are set to.
    rotation_s : float
        How long an access key is taken.
    sealed_s : float
        How long the provider of credentials is down.
    idle_s : float
        How long an idle connection lives.
    """

    saves: int
    limit_s: float
    rotation_s: float
    sealed_s: float
    idle_s: float


QUICK = Pace(saves=10, limit_s=3.0, rotation_s=3.0, sealed_s=8.0, idle_s=3.0)
FULL = Pace(saves=16, limit_s=5.0, rotation_s=30.0, sealed_s=60.0, idle_s=8.0)


class Scene:
    """One flow's world: its Metaflow and home directory, the front, the server behind it."""

    def __init__(self, root: Path, server: S3Server, front: TlsFront, *, fallback: bool) -> None:
        self.front = front
        self._root, self._server, self._number = root, server, 0
        self.scene = root / "scene"
        self.scene.mkdir(parents=True)
        self.workspace = Workspace(root, {
            "METAFLOW_DEFAULT_DATASTORE": "s3",
            "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/{root.name}-{uuid.uuid4().hex[:8]}",
            "METAFLOW_S3_ENDPOINT_URL": front.url,
            "METAFLOW_S3_VERIFY_CERTIFICATE": str(front.certificate),
            "METAFLOW_S3_WORKER_COUNT": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "SCENE": str(self.scene),
        })  # fmt: skip
        self._aws = Path(self.workspace.env["HOME"], ".aws")
        self._aws.mkdir()
        self.configure()
        self.hand_out(ACCESS_KEY)
        if fallback:
            self.workspace.take_away("aiobotocore", "aiohttp")

    # -- credentials -----------------------------------------------------------------------------------------------

    def configure(self, *lines: str) -> None:
        """Write the configuration file, with further lines."""
        # rclone takes no bodies in chunks, which botocore's default checksums need.
        plain = ["request_checksum_calculation = when_required", "response_checksum_validation = when_required"]
        _write(self._aws / "config", "\n".join(["[default]", f"region = {HOME_REGION}", *plain, *lines]) + "\n")

    def hand_out(self, key: str, token: str = "") -> None:
        """Rewrite the credentials file, as a refresher does."""
        lines = ["[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {SECRET_KEY}"]
        _write(self._aws / "credentials", "\n".join(lines + [f"aws_session_token = {token}"] * bool(token)) + "\n")

    def rotate(self) -> None:
        """From now on another key is taken, and no other; it stands in the credentials file."""
        self._number += 1
        key = f"ASIA{self._number:016d}"
        self.hand_out(key, f"token-{self._number}")
        self.front.set(keys=(key,))

    def ask_vault(self, *, renewed: bool) -> None:
        """Credentials come from a provider of its own from now on; ``renewed``: and say when they expire."""
        self._renewed = renewed
        (self._aws / "credentials").unlink()
        (self._root / "vault.sh").write_text(_VAULT)
        self.configure(f"credential_process = sh {self._root / 'vault.sh'} {self._root / 'vault'}")
        self.unseal()

    def seal(self) -> None:
        """The provider is down, and what it gave has expired."""
        (self._root / "vault").unlink()
        self.front.set(keys=(), refusal=("ExpiredToken",))

    def unseal(self) -> None:
        """The provider gives a new key, and no other is taken."""
        self._number += 1
        key = f"ASIA{self._number:016d}"
        given = {"AccessKeyId": key, "SecretAccessKey": SECRET_KEY, "SessionToken": f"token-{self._number}"}
        if self._renewed:
            # Botocore asks again before each request when there are less than ten minutes left.
            until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=5)
            given["Expiration"] = until.isoformat()
        _write(self._root / "vault", json.dumps({"Version": 1, **given}))
        self.front.set(keys=(key,))

    def refusals(self) -> int:
        """How often the provider was asked while it was down."""
        refused = self._root / "vault.refused"
        return len(refused.read_text().splitlines()) if refused.exists() else 0

    # -- the flow --------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """The flow saves nothing until it is let go."""
        (self.scene / "wait").touch()

    def let_go(self) -> None:
        (self.scene / "wait").unlink()

    def has_started(self) -> bool:
        """Whether its step runs."""
        return (self.scene / "started").exists()

    def saved(self) -> dict[int, dict[str, str]]:
        """Number -> path -> SHA-256 of all that was saved so far."""
        file = self.scene / "saved"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return {line["number"]: line["files"] for line in lines}

    def load(self, pathspec: str, attempts: int) -> dict[int, Any]:
        """Load all checkpoints of a task, past the front; see ``_LOAD``."""
        direct = {
            "METAFLOW_S3_ENDPOINT_URL": self._server.url, "METAFLOW_S3_VERIFY_CERTIFICATE": "",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "PYTHONPATH": "",
        }  # fmt: skip
        folder = str(self._root / "loaded")
        found = self.workspace.query(_LOAD, pathspec, str(attempts), folder, env=direct)
        return {int(number): files for number, files in found.items()}


def _write(path: Path, text: str) -> None:
    """In one moment, so that nobody reads half of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.rename(path)


# -- weather -------------------------------------------------------------------------------------------------------

#: What goes on beside the flow: a context manager, entered before it starts and left when it has ended.
Weather = Callable[[Scene], AbstractContextManager[None]]


@contextlib.contextmanager
def still(scene: Scene) -> Iterator[None]:
    """Nothing."""
    yield


def rotation(period_s: float) -> Weather:
    """Every so often the old access key is refused, and another one stands in the credentials file."""

    @contextlib.contextmanager
    def weather(scene: Scene) -> Iterator[None]:
        over = threading.Event()

        def rotate() -> None:
            while not over.wait(period_s):
                scene.rotate()

        scene.rotate()
        with _beside(rotate, over):
            yield

    return weather


def sealed(seconds: float, *, saves: int, renewed: bool) -> Weather:
    """The provider is down for a while, from the moment in which the flow has saved so often; see ``ask_vault``."""

    @contextlib.contextmanager
    def weather(scene: Scene) -> Iterator[None]:
        over = threading.Event()

        def seal() -> None:
            while not (scene.has_started() and len(scene.saved()) >= saves):
                if over.wait(0.05):
                    return
            scene.seal()
            if saves == 0:
                scene.let_go()
            over.wait(seconds)
            scene.unseal()

        scene.ask_vault(renewed=renewed)
        if saves == 0:
            scene.hold()
        with _beside(seal, over):
            yield

    return weather


@contextlib.contextmanager
def _beside(work: Callable[[], None], over: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Case:
    """One kind of trouble.

    Parameters
    ----------
    name : str
        What the network, the store or the credentials do.
    meets : str
        Which of the counts says that it has come to that; empty: there is no trouble.
    trouble : mapping
        The front's settings.
    server : str
        Which one stands behind it: ``rclone`` verifies signatures, ``moto`` believes every key.
    pause_s, pauses : float, mapping
        How long the flow waits after each save; and after some, once all is in the store.
    lasts_s : float
        How long the trouble lasts by itself.
    weather : Weather
        What happens beside the flow.
    says : str
        What must stand in the flow's log.
    """

    name: str
    meets: str
    trouble: Mapping[str, Any] = field(default_factory=dict)
    server: str = "rclone"
    pause_s: float = 0.0
    pauses: Mapping[int, float] = field(default_factory=dict)
    lasts_s: float = 0.0
    weather: Weather = still
    says: str = ""


def cases(pace: Pace) -> dict[str, Case]:
    """All of them, by name; the first one is fair weather."""
    # So long that several keys are needed.
    keys_s = 3.5 * pace.rotation_s / pace.saves
    # An outage is said when a request was tried for some time.
    says = "vault is sealed" if pace.sealed_s > SAID_AFTER_S else ""
    # While all this goes on, connections are younger than what kills them.
    pauses = {pace.saves * part // 4: pace.idle_s * 1.4 for part in (1, 3)}
    found = (
        Case("none", ""),
        Case("a PUT is never answered", tls_front.SILENT, {"silent": r"^PUT .*/artifacts/"}),
        Case("a part is never answered", tls_front.SILENT, {"silent": r"^PUT .*partNumber="}),
        Case("every 20th answer stops midway", tls_front.STOPPED, {"stops_every": 20}),
        Case("idle connections are dead", tls_front.DEAD, {"idle_s": pace.idle_s}, pauses=pauses),
        Case(
            "credentials are rotated", tls_front.REFUSED, server="moto", pause_s=keys_s,
            weather=rotation(pace.rotation_s),
        ),
        Case(
            "the provider is down", SEALED, server="moto", pause_s=0.2, lasts_s=pace.sealed_s,
            weather=sealed(pace.sealed_s, saves=2, renewed=True), says=says,
        ),
        Case(
            "the provider is down at first", SEALED, server="moto", lasts_s=pace.sealed_s,
            weather=sealed(pace.sealed_s, saves=0, renewed=False), says=says,
        ),
        Case("another region: 301", tls_front.WRONG_REGION, {"region": OTHER_REGION}),
        Case("another region: 400", tls_front.WRONG_REGION, {"region": OTHER_REGION, "region_status": 400}),
        Case("conditions: 501", tls_front.UNCONDITIONAL, {"conditions": 501}, "moto"),
        Case("conditions: 412", tls_front.UNCONDITIONAL, {"conditions": 412}, "moto"),
        Case("307 to elsewhere", tls_front.MOVED, {"moved": True}),
    )  # fmt: skip
    return {case.name: case for case in found}


# -- a play --------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a case; ``seconds`` of the whole flow, ``longer_s`` that it may take beyond fair weather."""

    case: Case
    seconds: float
    longer_s: float
    saves: int
    attempts: int
    counts: Counter[str]
    output: str
    intact: int = 0
    #: What is not as it should be, a line each.
    wrong: list[str] = field(default_factory=list)

    @property
    def met(self) -> int:
        """How often the trouble came."""
        return self.counts[self.case.meets]


def play(
    case: Case, pace: Pace, root: Path, server: S3Server, *, fallback: bool = False, usual_s: float = USUAL_S
) -> Outcome:
    """Run the flow, then load what it saved.

    Parameters
    ----------
    root : Path
        A new directory for all of it.
    fallback : bool
        Whether there is no aiobotocore.
    usual_s : float
        What the flow takes in fair weather. It is ended when it takes much longer than that and all limits together.
    """
    longer_s = sum(case.pauses.values()) + case.pause_s * pace.saves + 2 * (3 * pace.limit_s + case.lasts_s)
    with TlsFront(server.url, root / "tls", **case.trouble) as front:
        scene = Scene(root, server, front, fallback=fallback)
        try:
            with case.weather(scene):
                started = time.monotonic()
                run, ended = _run(scene, case, pace, usual_s + 2 * longer_s)
                seconds = time.monotonic() - started
            counts = front.counts() + Counter({SEALED: scene.refusals()})
            outcome = Outcome(case, seconds, longer_s, pace.saves, 0, counts, run.output if run else ended)
            if is_fallback(outcome.output) is not fallback:
                outcome.wrong.append(f"uploads went {'with' if fallback else 'without'} aiobotocore")
            if run is None:
                outcome.wrong.append("the flow did not end")
            else:
                _examine(scene, run, outcome)
            return outcome
        finally:
            scene.workspace.kill_leftovers()


def _run(scene: Scene, case: Case, pace: Pace, deadline_s: float) -> tuple[FlowRun | None, str]:
    limits = {
        f"METAFLOW_ASYNC_CKPT_{name}_TIMEOUT_S": f"{pace.limit_s:g}" for name in ("CONNECT", "ANSWER", "STALL")
    }  # fmt: skip
    saving = {
        "SAVES": str(pace.saves), "PAUSE_S": str(case.pause_s),
        "PAUSES": json.dumps({str(number): seconds for number, seconds in case.pauses.items()}),
    }  # fmt: skip
    flow = scene.workspace.start_flow("weather_flow", env={**limits, **saving})
    try:
        return flow.finish(deadline_s), ""
    except AssertionError as error:
        return None, str(error)


def _examine(scene: Scene, run: FlowRun, outcome: Outcome) -> None:
    wrong = outcome.wrong
    if run.returncode:
        wrong.append(f"the flow failed with exit status {run.returncode}")
    (task,) = run.tasks()["start"]
    outcome.attempts = task.attempt + 1
    if outcome.attempts > 1:
        wrong.append(f"{outcome.attempts} attempts were needed")
    saved, loaded = scene.saved(), scene.load(task.pathspec, outcome.attempts)
    for number in range(outcome.saves):
        if loaded.get(number) == saved.get(number):
            outcome.intact += 1
        else:
            wrong.append(f"save {number} is not what was saved: {loaded.get(number, 'it is not there')}")
    latest = task.artifacts.get("_task_latest_checkpoint") or {"metadata": {"number": None}}
    if latest["metadata"]["number"] != outcome.saves - 1:
        wrong.append(f"the task's latest is number {latest['metadata']['number']}")
    if outcome.case.meets and not outcome.met:
        wrong.append(f"there was no trouble: nothing was {outcome.case.meets}")
    if outcome.case.says not in run.output:
        wrong.append(f"the log does not say {outcome.case.says!r}")
    try:
        wait_until(lambda: not scene.workspace.agents(), "the agents exit")
    except AssertionError as error:
        wrong.append(str(error))
    if left := scene.workspace.spool_directories():
        wrong.append(f"{len(left)} spools are left")


def is_fallback(output: str) -> bool:
    """Whether a flow's output says that its uploads went without aiobotocore."""
    return "Uploads go over boto3" in output
