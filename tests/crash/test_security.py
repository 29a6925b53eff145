"""Others on this machine: they get no word from the agent, and find no credential in anything it leaves or says."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_ckpt.errors import CheckpointError
from async_ckpt.ipc import protocol
from async_ckpt.stores.base import StoreSpec
from harness.s3.gated_s3 import GatedS3
from harness.s3.servers import free_port
from harness.tasks.repeated_saves import save
from harness.tasks.task import Task, agent_pid, uploader_pid, wait_until

_SECRET, _TOKEN, _PASSWORD = "marker-Of-The-Secret-Key", "marker-Of-The-Session-Token", "marker-Of-A-Password"
MARKERS = (_SECRET, _TOKEN, _PASSWORD)
NOBODY = 65534

_KNOCK = """
import os, socket, sys
from async_ckpt.ipc import protocol
folder, uid = sys.argv[1], int(sys.argv[2])
os.chdir(folder)
if uid != os.getuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(60)
    try:
        sock.connect("agent.sock")
        sock.sendall(protocol.encode({"op": "hello", "v": protocol.VERSION, "seq": 1}))
        print("answered" if sock.recv(1000) else "turned away")
    except PermissionError:
        print("not let in")
    except ConnectionError:
        print("turned away")
"""


def knock(folder: str, uid: int) -> str:
    """What somebody gets who greets the agent of the spool in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", _KNOCK, folder, str(uid)], capture_output=True, text=True, check=True, timeout=90
    )
    return done.stdout.strip()


def test_only_the_same_user_is_answered(task: Task) -> None:
    checkpointer = task.start()
    spool, sock = checkpointer.spool.directory, checkpointer.spool.path("agent.sock")
    assert stat.S_IMODE(os.stat(spool).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(sock).st_mode) == 0o600
    assert knock(spool, os.getuid()) == "answered"
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    assert knock(spool, NOBODY) == "not let in"
    # Even if somebody opened all doors: the kernel says who it is.
    os.chmod(spool, 0o777)
    os.chmod(sock, 0o666)
    assert knock(spool, NOBODY) == "turned away"
    assert checkpointer.status()["pid"] == agent_pid(checkpointer)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedS3]:
    with GatedS3(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that this process and its agents say to each other from now on."""
    words: list[bytes] = []
    send, receive = protocol.send, protocol.receive

    def spoken(sock: object, data: bytes, *rest: object) -> int:
        words.append(bytes(data))
        return send(sock, data, *rest)  # type: ignore[arg-type]

    def read(sock: object) -> tuple[bytes, list[int]]:
        data, fds = receive(sock)  # type: ignore[arg-type]
        words.append(data)
        return data, fds

    monkeypatch.setattr(protocol, "send", spoken)
    monkeypatch.setattr(protocol, "receive", read)
    return words


def everything_in(folder: Path) -> Iterator[bytes]:
    """All names and contents below a folder."""
    for path in folder.rglob("*"):
        yield os.fsencode(path)
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def command_lines() -> Iterator[bytes]:
    """What ``ps`` shows of every process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue  # It has ended.


def _refusing(task: Task, server: GatedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store knows who it is, and does not want it."""
    server.close_gate("PUT,POST:refuse")
    root = server.new_bucket()["METAFLOW_DATASTORE_SYSROOT_S3"]
    task.store = StoreSpec("metaflow-s3", root, {"client_params": {"endpoint_url": server.url}})


def _behind_a_proxy(task: Task, server: GatedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to the store leads through a proxy that is not there; its address has a password in it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://user:{_PASSWORD}@127.0.0.1:{free_port()}")
    task.store = StoreSpec(
        "metaflow-s3", "s3://bucket/root", {"client_params": {"endpoint_url": "http://store.invalid"}}
    )


def _at_a_bad_address(task: Task, server: GatedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's address has a password in it, and a mistake, which has to be shown."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{_PASSWORD}@127.0.0.1:9x")
    task.store = StoreSpec("metaflow-s3", "s3://bucket/root")


@pytest.mark.parametrize("trouble", [_refusing, _behind_a_proxy, _at_a_bad_address])
def test_no_credential_is_written_or_said_anywhere(
    task: Task,
    server: GatedS3,
    heard: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Task, GatedS3, pytest.MonkeyPatch], None],
) -> None:
    for name, value in (
        ("ACCESS_KEY_ID", "an-id"), ("SECRET_ACCESS_KEY", _SECRET), ("SESSION_TOKEN", _TOKEN),
        ("DEFAULT_REGION", "us-east-1"), ("EC2_METADATA_DISABLED", "true"),
    ):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    task.set(store_attempts=2, outage_s=0, claim_wait_s=0.5)
    trouble(task, server, monkeypatch)
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    save(checkpointer, task, 0)
    wait_until(lambda: checkpointer.status()["failed_count"], "the store has refused")
    uploader = uploader_pid(checkpointer)
    shown = list(command_lines())
    assert any(b"uploader" in line for line in shown), f"the uploader, {uploader}, is not among them"
    with pytest.raises(CheckpointError) as caught:
        checkpointer.flush(60)
    said += [str(caught.value), repr(caught.value), json.dumps(checkpointer.status())]
    assert "not in the store" in said[-3]
    server.open_gate()
    places = {
        "the spool": everything_in(Path(task.root)),
        "a command line": shown,
        "a frame": [b"".join(heard)],
        "what was reported": [text.encode() for text in said],
    }
    assert len(places["a frame"][0]) > 1000  # type: ignore[index]
    for place, contents in places.items():
        for content in contents:
            assert not [marker for marker in MARKERS if marker.encode() in content], place
