"""An S3 server (moto) whose answers to requests for checkpoints can be spoiled; Metaflow's own requests go through.

The gate is a file, so that a flow's step can open and close it as well: its content is a rule
``<methods>:<what happens>``, e.g. ``PUT:hang`` or ``PUT,POST,GET:refuse``; a further ``:<text>`` confines it to
addresses with this text in them.

hang     no answer until the gate opens
refuse   403 AccessDenied: for good
fail     503 SlowDown: worth a retry
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

START_S = 60.0
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>The gate is closed</Message></Error>"


class GatedS3:
    """The server process; a context manager. ``root`` is a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.gate_file, self._address = root / "gate", root / "address"
        self._log, self._answered = root / "server.log", root / "answered"

    def __enter__(self) -> GatedS3:
        # A server must outlive no test run: it ends when its standard input does.
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self._address), str(self.gate_file), str(self._answered)],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        until = time.monotonic() + START_S
        while not self._address.exists():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.05)
        self.url = self._address.read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open_gate()
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close_gate(self, rule: str) -> None:
        self.gate_file.write_text(rule)

    def open_gate(self) -> None:
        self.gate_file.unlink(missing_ok=True)

    def answered(self, method: str) -> list[str]:
        """Addresses of all requests that came through, oldest first."""
        lines = self._answered.read_text().splitlines() if self._answered.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{method} ")]

    def new_bucket(self) -> dict[str, str]:
        """Make a bucket; returns Metaflow's settings for it. ``GATE`` names the gate's file to steps."""
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.url}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass
        return {
            "METAFLOW_DEFAULT_DATASTORE": "s3",
            "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket}/metaflow",
            "METAFLOW_S3_ENDPOINT_URL": self.url,
            "METAFLOW_S3_RETRY_COUNT": "2",
            "METAFLOW_S3_WORKER_COUNT": "2",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GATE": str(self.gate_file),
        }


def _serve(address: str, gate: str, answered: str) -> None:
    import signal
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def rule(method: str, path: str) -> str:
        try:
            with open(gate) as file:
                methods, what, *text = file.read().split(":", 2)
        except FileNotFoundError:
            return ""
        concerned = method in methods.split(",") and "mf.checkpoints" in path and all(part in path for part in text)
        return what if concerned else ""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"] + "?" + environ.get("QUERY_STRING", "")
        while (what := rule(method, path)) == "hang":
            time.sleep(0.05)
        if what:
            with contextlib.suppress(ValueError, OSError):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = ("403 Forbidden", "AccessDenied") if what == "refuse" else ("503 Slow Down", "SlowDown")
            start_response(status, [("Content-Type", "application/xml")])
            return [_ERROR.format(code).encode()]
        answer: Iterable[bytes] = moto(environ, start_response)
        with open(answered, "a") as file:
            file.write(f"{method} {path}\n")
        return answer

    server = make_server("127.0.0.1", 0, application, threaded=True)
    temporary = f"{address}.new"
    with open(temporary, "w") as file:
        file.write(f"http://127.0.0.1:{server.server_port}")
    os.rename(temporary, address)
    threading.Thread(target=lambda: (sys.stdin.read(), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
