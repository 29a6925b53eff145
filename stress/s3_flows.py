"""Flows that save to S3 over TLS while something is wrong on the way there; all that they saved must be loadable.

    python -m stress.s3_flows [--quick] [--case NAME ...] [--client engine fallback] [--logs DIRECTORY]

Needs what the tests need. A real flow saves through a front before a real server (see ``harness/flow_runs/over_s3.py``
for the cases). It must end green, at its first attempt, no later than it does in fair weather plus twice the sum of the
limits that strike, and another process must load all of it straight from the server. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.flow_runs.over_s3 import FULL, QUICK, Outcome, Pace, cases, play
from harness.s3 import servers
from stress.bench import results
from stress.bench.environment import caveats, memory_directory, work_directory

COMMAND = "python -m stress.s3_flows"
CLIENTS = ("engine", "fallback")
FAIR = next(iter(cases(QUICK)))


@contextlib.contextmanager
def both_servers() -> Iterator[dict[str, servers.S3Server]]:
    """By the names that cases have for them."""
    with memory_directory() as directory, servers.rclone(Path(directory)) as rclone, servers.moto() as moto:
        yield {"rclone": rclone, "moto": moto}


class Theatre:
    """Plays cases and keeps what came of them; without the network's trouble first, to know what a flow takes."""

    def __init__(self, work: Path, pace: Pace, found: dict[str, servers.S3Server], logs: Path | None) -> None:
        self._work, self._pace, self._servers, self._logs = work, pace, found, logs
        self._usual: dict[tuple[str, str], float] = {}
        self.rows: list[dict[str, Any]] = []
        self.bad = 0

    def play(self, name: str, client: str) -> None:
        case = cases(self._pace)[name]
        if name == FAIR:
            for server in self._servers:
                self._fair(client, server)
            return
        usual_s = self._fair(client, case.server)
        self._add(self._play(name, client, case.server, usual_s), client, usual_s)

    def _fair(self, client: str, server: str) -> float:
        """Seconds of the flow in fair weather."""
        if (client, server) not in self._usual:
            outcome = self._play(FAIR, client, server, 60.0)
            self._usual[client, server] = outcome.seconds
            self._add(outcome, client, outcome.seconds)
        return self._usual[client, server]

    def _play(self, name: str, client: str, server: str, usual_s: float) -> Outcome:
        case = replace(cases(self._pace)[name], server=server)
        root = self._work / f"{len(self.rows)}-{client}"
        outcome = play(case, self._pace, root, self._servers[server], fallback=client == "fallback", usual_s=usual_s)
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            (self._logs / f"{client} {server} {name.replace(':', '')}.txt").write_text(outcome.output)
        return outcome

    def _add(self, outcome: Outcome, client: str, usual_s: float) -> None:
        limit_s = usual_s + outcome.longer_s
        wrong = [*outcome.wrong]
        if outcome.seconds > limit_s:
            wrong.append(f"it took {outcome.seconds:.1f} s, more than {limit_s:.1f}")
        self.rows.append({
            "what is wrong": outcome.case.name, "client": client, "server": outcome.case.server, "times": outcome.met,
            "saves": outcome.saves, "loadable": outcome.intact, "attempts": outcome.attempts,
            "s": outcome.seconds, "in fair weather, s": usual_s, "limit, s": limit_s,
            "as it should be": not wrong,
        })  # fmt: skip
        print(self.rows[-1], dict(outcome.counts), flush=True)
        for line in wrong:
            print(f"    {line}", flush=True)
        self.bad += bool(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer saves and shorter limits; to try the tool")
    parser.add_argument("--case", nargs="+", choices=cases(QUICK), help="only these; nothing is recorded then")
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--logs", type=Path, help="a directory to keep the flows' output in")
    options = parser.parse_args()
    pace = QUICK if options.quick else FULL
    notes = [
        *caveats(quick=options.quick),
        f"Limits of connecting, of an answer and of a stall: {pace.limit_s:g} s each. Keys are rotated every"
        f" {pace.rotation_s:g} s; the provider of credentials is down for {pace.sealed_s:g} s; idle connections die"
        f" after {pace.idle_s:g} s. A flow may take what it takes in fair weather, its pauses, and twice all limits"
        " together, with the time for which the provider is down.",
        "fallback: aiobotocore and aiohttp are not installed. Server, front, agent and flow share the machine.",
    ]
    with work_directory() as work, both_servers() as found:
        theatre = Theatre(Path(work).resolve(), pace, found, options.logs)
        for client in options.client:
            for name in options.case or cases(pace):
                theatre.play(name, client)
    if not options.case:
        results.record("s3_flows", results.command(COMMAND), theatre.rows, notes)
    return bool(theatre.bad)


if __name__ == "__main__":
    sys.exit(main())
