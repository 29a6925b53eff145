"""What ranks that save together tell, and one attempt of their task from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import IO, Any

from harness.kills.ledger import Ledger, Save
from harness.kills.state_ranks import FAIL, Spec
from harness.tasks.task import kill


class Told:
    """What the ranks of all attempts have told: so many save together each time."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.ledger = Ledger()
        #: How many saves were begun, and have returned, each rank's by itself.
        self.begun = self.saved = 0
        self._parts: Counter[str] = Counter()
        #: (attempt, start) → what each rank has begun with.
        self._beginnings: dict[tuple[int, int], list[Any]] = {}

    def take(self, line: dict[str, Any], attempt: int) -> None:
        if "saved" in line:
            identity = ".".join(map(str, line["saved"]))
            self.saved += 1
            self._parts[identity] += 1
            if self._parts[identity] == self._ranks:  # Now it is promised.
                self.ledger.promised[identity] = Save(identity, line["number"], line["kind"])
        elif "begin" in line:
            self.begun += 1
        elif "resumed" in line:
            found = line["from"]
            self.ledger.take({"resumed": None if found is None else [*found, line["fault"]]})
            self._beginnings.setdefault((attempt, line["start"]), []).append(found)
        else:
            self.ledger.take(line)

    def differing(self) -> list[str]:
        """Starts whose ranks did not begin with the same."""
        return [
            f"the ranks of start {start} of attempt {attempt} began with {found}"
            for (attempt, start), found in self._beginnings.items()
            if any(each != found[0] for each in found)
        ]


class Attempt:
    """One attempt from outside: its process, what it tells, and its end."""

    def __init__(self, spec: Spec, environment: Mapping[str, str], told: Told) -> None:
        self._told, self._number = told, spec.attempt
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.kills.state_ranks", "task", spec.to_text()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        self.pid = self._process.pid
        #: Of the ranks that were started last: the number of their start, their processes, how many go on.
        self.start, self.ranks, self.resumed = -1, [0] * spec.ranks, 0
        #: All that saves here is gone.
        self.ended = False
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            for pid in (self.pid, *self.ranks):
                kill(pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def _listen(self, told: IO[bytes]) -> None:
        with told:
            for text in told:
                line = json.loads(text)
                self._told.take(line, self._number)
                if "pids" in line:
                    self.start, self.ranks, self.resumed = line["start"], line["pids"], 0
                self.resumed += "resumed" in line and line["start"] == self.start
        self.ended = True

    def wait_for(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """Wait until the condition is true; False if all has ended, or the time is over, before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.ended or time.monotonic() >= deadline:
                return False
            time.sleep(0.004)
        return True

    def fail(self) -> None:
        """Have it end as a step that failed; one that is dead takes no order."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), FAIL)
