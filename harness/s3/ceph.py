"""A Ceph gateway on one node, from Debian's packages: what many have who have no Amazon."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import boto3
import pytest

from harness.s3.servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, free_port, serve

#: Debian's packages with the programs.
PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
_START_S = 60.0

# One of everything, all of it in memory. Two things make it start in one second instead of twelve: what the monitor is
# asked to change it writes down at once, and there is no manager, which nobody asks for anything here. What was deleted
# goes after a minute, not after hours: it is memory.
_CONFIG = """
[global]
fsid = {cluster}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr1 = false
ms_bind_retry_count = 1
keyring = {folder}/keyring
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 500
mon_data_avail_warn = 2
mon_data_avail_crit = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 12G
rgw_gc_obj_min_wait = 60
rgw_gc_processor_period = 60
mon_data = {folder}/mon
osd_data = {folder}/osd
run_dir = {folder}
crash_dir = {folder}
log_file = {folder}/$name.log
admin_socket =
pid_file =
"""


class _Taken(Exception):
    """Somebody else has the monitor's port meanwhile."""


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[S3Server]:
    """Ceph's S3: checks signatures, honours conditions (with tags as it likes them), takes no part below 5 MiB."""
    if missing := [program for program in _PROGRAMS if not shutil.which(program)]:
        pytest.skip(f"{', '.join(missing)}: not installed (apt-get install {' '.join(PACKAGES)})")
    # Not below pytest's own directory: whatever the path is, it is short.
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, gateway(Path(folder)) as server:
        yield server


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[S3Server]:
    """A gateway with the tests' user and an empty bucket, until the block ends; ``folder`` is its own."""
    with open(folder / "output", "w+b") as log, contextlib.ExitStack() as stack:
        node = _started(folder, log, stack)
        command = node.command("radosgw", "--foreground", "--name", "client.admin")
        server = stack.enter_context(
            serve(lambda port: [*command, f"--rgw-frontends=beast endpoint=127.0.0.1:{port}"], log)
        )
        node.run(
            "radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests",
            f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}",
        )  # fmt: skip
        client = boto3.client("s3", **server.client_params)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield server


def _started(folder: Path, log: IO[bytes], stack: contextlib.ExitStack) -> _Node:
    """A node whose processes end with ``stack``; on another port where somebody took the first one."""
    for number in range(5):
        node = _Node(folder / str(number), free_port(), log)
        with contextlib.ExitStack() as trying:
            try:
                node.start(trying)
            except _Taken:
                continue
            stack.push(trying.pop_all())
            return node
    raise RuntimeError("Ceph's monitor finds no port")


class _Node:
    """What is behind the gateway: a monitor, and what keeps the objects."""

    def __init__(self, folder: Path, port: int, log: IO[bytes]) -> None:
        self._folder, self._port, self._log = folder, port, log
        for name in ("mon", "osd"):
            (folder / name).mkdir(parents=True)

    def start(self, stack: contextlib.ExitStack) -> None:
        cluster, device = str(uuid.uuid4()), str(uuid.uuid4())
        address, monitors, keys = f"[v2:127.0.0.1:{self._port}]", self._folder / "monitors", self._folder / "keyring"
        config = _CONFIG.format(cluster=cluster, monitor=address, folder=self._folder)
        (self._folder / "ceph.conf").write_text(config)
        keys.touch(mode=0o600)
        for name in ("mon.", "client.admin", "osd.0"):
            everything = [part for what in ("mon", "osd", "mgr") for part in ("--cap", what, "allow *")]
            self.run("ceph-authtool", str(keys), "--gen-key", "--name", name, *everything)
        self.run("monmaptool", "--create", "--addv", "a", address, "--fsid", cluster, str(monitors))
        self.run("ceph-mon", "--id", "a", "--mkfs", "--monmap", str(monitors), "--keyring", str(keys))
        monitor = self._serve(stack, "ceph-mon", "--id", "a")
        self._wait_for(monitor)
        self.run("ceph", "osd", "new", device)
        self.run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", device)
        self._serve(stack, "ceph-osd", "--id", "0")
        until = time.monotonic() + _START_S
        while b" 1 up" not in self.run("ceph", "osd", "stat"):
            if time.monotonic() > until:
                raise RuntimeError(f"Ceph's storage does not start: {self._said()}")

    def command(self, program: str, *arguments: str) -> list[str]:
        """A program of this cluster's."""
        ours = [part for name in ("CEPH_ARGS", "PYTHONHOME", "PYTHONPATH") for part in ("--unset", name)]
        return ["env", *ours, program, "--conf", str(self._folder / "ceph.conf"), *arguments]

    def run(self, program: str, *arguments: str) -> bytes:
        """Run one that ends soon; its output."""
        done = subprocess.run(
            self.command(program, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise RuntimeError(f"{program} {arguments[0]}: {said}\n{self._said()}")
        return done.stdout

    def _serve(self, stack: contextlib.ExitStack, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.command(program, "--foreground", *arguments), stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=self._log,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def _wait_for(self, monitor: subprocess.Popen[bytes]) -> None:
        """Until it says that it leads: somebody else may answer on its port."""
        log, until = self._folder / "mon.a.log", time.monotonic() + _START_S
        while "is new leader" not in (log.read_text(errors="replace") if log.exists() else ""):
            if monitor.poll() is not None:
                if "already in use" in self._said():
                    raise _Taken
                raise RuntimeError(f"Ceph's monitor does not start: {self._said()}")
            if time.monotonic() > until:
                raise RuntimeError(f"Ceph's monitor finds nobody to lead: {self._said()}")
            time.sleep(0.02)  # another process' start sends no event

    def _said(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")[-2000:]
