"""Our S3 store beside other clients: ``python -m stress.bench.engines [--quick] [--server S] [--case C] …``.

Every run of an engine is a process of its own (``clients/``), which imports, connects and moves one small object before
it is timed; command line tools are timed from start to end. Engines take turns, round after round. Uploads are read
from the page cache; downloads are written to new files on the disk. After each run it is checked that all arrived.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import pattern, results
from .clients import ENGINES
from .clients.job import IN_FLIGHT, PART_BYTES, Measured
from .data_plane import BEFORE
from .endpoints import NAMES, endpoint
from .environment import Package, available_memory, caveats, ours, peer, tools, work_directory
from .transfers import Bench, Case, Failed

COMMAND = "python -m stress.bench.engines"
DIRECTIONS = ("up", "down")
SERVERS = ("rclone", "sink", "sink-tls", "sink-tls-20ms")

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_QUICK_SHARE = 16

#: An engine whose first run takes longer is run once.
_SLOW_S = 8.0

NOTES = (
    "Before each run as much memory as it needs is touched, so that nobody pays for pages that a hypervisor took back.",
    "Medians; *x ours*: an engine's seconds divided by ours. *cpu*: user and system time of the client and its "
    "children, not the server's; *peak*: resident memory.",
    f"Tuned engines (boto3 tuned, CRT, obstore, s5cmd, rclone) have parts of {PART_BYTES >> 20} MiB and {IN_FLIGHT} in "
    "flight; payloads are unsigned where the engine can do that. The figures of s5cmd and rclone include the start of "
    "their process.",
    "Ours sends a CRC-32 with what it uploads and checks one of what it downloads; of the others only boto3 and "
    "aiobotocore as they come, CRT and Metaflow's client send a checksum, and none has one to check downloads with.",
    f"An engine that took more than {_SLOW_S:g} s in the first round is not run again.",
    "Metaflow's client has up to 64 processes, as it comes: with many files most of its time is theirs to start.",
)
SERVER_NOTES = {
    "rclone": "rclone's server answers 411 to aws-chunked bodies, so AWS's libraries are told to send checksums only "
    "when they are required. It shares the two cores and the memory with the client.",
    "sink": "The server throws away what it gets and answers at once: a client's ceiling, not a store's.",
    "sink-tls": "As the sink, over TLS: the server's share of the encryption is on the same cores.",
    "sink-tls-20ms": "As the sink over TLS, which waits 20 ms before each answer, as a store in the same region does.",
    "moto": "moto_server is a tool for tests, in Python: its own speed is what is seen.",
}


def cases(quick: bool) -> list[Case]:
    """What is transferred; a sixteenth of it if it is to be ``quick``, under the same labels."""
    share = _QUICK_SHARE if quick else 1
    mixture = {f"model-{number}-of-2.safetensors": 3 * _GIB // share for number in (1, 2)}
    mixture |= {f"config-{number:02}.json": _KIB + number * 179 for number in range(40)}
    return [
        Case("1 x 1 GiB", {"state.bin": _GIB // share}),
        Case("64 x 16 MiB", {f"shard-{number:02}.bin": 16 * _MIB for number in range(64 // share)}),
        Case("2 x 3 GiB + 40 JSON", mixture),
        Case("1,000 x 64 KiB", {f"part-{number:04}.bin": 64 * _KIB for number in range(1000 // share)}),
    ]


@dataclass
class Series:
    """The runs of one engine in one case."""

    engine: str
    runs: list[Measured] = field(default_factory=list)
    failure: str = ""

    @property
    def is_slow(self) -> bool:
        """Whether one run says enough."""
        return self.runs[0].seconds > _SLOW_S

    def row(self, facts: Mapping[str, Any], reference: float) -> dict[str, Any]:
        seconds = results.median([run.seconds for run in self.runs])
        return {
            **facts, "engine": self.engine, "seconds": seconds,
            "cpu": results.median([run.cpu for run in self.runs]),
            "peak MiB": max(run.rss for run in self.runs) >> 20,
            "x ours": f"{seconds / reference:.2f}" if reference else "", "n": len(self.runs),
        }  # fmt: skip


def measure(
    bench: Bench, case: Case, directions: list[str], names: list[str], rounds: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """One case on one server: rows, and notes on what failed."""
    rows, notes = [], []
    source = os.path.join(bench.work, "source")
    # A name of its own: servers remember what was in a folder.
    bench.runs += 1
    seed = f"seed-{bench.runs}"
    os.mkdir(source)
    try:
        for name, size in case.sizes.items():
            pattern.write(os.path.join(source, name), size)
        for direction in directions:
            series = [Series(name) for name in names]
            if direction == "down":
                bench.run("ours", "up", case.sizes, source, seed)
            for number in range(rounds):
                # Each is the first once: what the one before it leaves behind is everybody's in turn.
                turn = series[number % len(series) :] + series[: number % len(series)]
                for one in (one for one in turn if not one.failure and (number == 0 or not one.is_slow)):
                    try:
                        if direction == "up":
                            one.runs.append(bench.up(one.engine, case, source))
                        else:
                            one.runs.append(bench.down(one.engine, case, seed))
                    except Failed as error:
                        one.failure = str(error)
                        print(f"{one.engine} failed: {error}", file=sys.stderr, flush=True)
                        notes.append(f"{one.engine}, {direction}, {case.label}: not measured, it failed.")
            done = [one for one in series if not one.failure]
            mine = [run.seconds for one in done if one.engine == "ours" for run in one.runs]
            facts = {"direction": direction, "case": case.label, "bytes": case.bytes}
            rows += [one.row(facts, results.median(mine) if mine else 0.0) for one in done]
        return rows, notes
    finally:
        shutil.rmtree(source)
        bench.remove_downloads()
        bench.server.remove(seed)


def bench_server(name: str, options: argparse.Namespace, packages: Mapping[str, Package]) -> None:
    """All cases on one server; recorded unless something was left out."""
    rows, notes = [], [*caveats(quick=options.quick), *NOTES, SERVER_NOTES[name]]
    if options.quick:
        notes.insert(0, f"Quick: every case has 1/{_QUICK_SHARE} of its bytes.")
    rounds = options.rounds or (2 if options.quick else 5)
    names = [*(options.engine or ENGINES), *([BEFORE] if options.before else [])]
    with work_directory() as work, endpoint(name) as server:
        bench = Bench(server, work, packages, {BEFORE: os.path.abspath(options.before)} if options.before else {})
        bench.prepare()
        for case in cases(options.quick):
            if options.case and case.label not in options.case:
                continue
            if server.keeps and 2 * case.bytes + _GIB > available_memory():
                notes.append(f"{case.label}: left out, since the server keeps it in memory and there is too little.")
                continue
            more_rows, more_notes = measure(bench, case, options.direction or list(DIRECTIONS), names, rounds)
            rows, notes = rows + more_rows, notes + more_notes
            for row in more_rows:
                print(summary_line(name, row), flush=True)
    partly = bool(options.case or options.direction or options.engine)
    if partly and not options.record:
        print("Not recorded: the report shows whole runs, unless --record is given.")
        return
    given = ["--quick"] * options.quick + ([f"--rounds={options.rounds}"] if options.rounds else [])
    for option in ("case", "direction", "engine"):
        given += [part for value in getattr(options, option) or () for part in (f"--{option}", value)]
    command = shlex.join([*COMMAND.split(), "--server", name, *given])
    section = f"engines_{name.replace('-', '_')}"
    earlier = results.read(section) if partly else None
    if earlier is not None:
        rows, notes = merged(earlier["rows"], rows), list(dict.fromkeys([*earlier["notes"], *notes]))
        command = f"{earlier['command']}; {command}"
    results.record(section, command, rows, notes)


def merged(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of both; a case that was measured again stands where it stood, with the engines of the later run only."""
    again: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in later:
        again.setdefault((row["direction"], row["case"]), []).append(row)
    cases = list(dict.fromkeys((row["direction"], row["case"]) for row in [*earlier, *later]))
    before = {case: [row for row in earlier if (row["direction"], row["case"]) == case] for case in cases}
    return [row for case in cases for row in again.get(case, before[case])]


def summary_line(server: str, row: Mapping[str, Any]) -> str:
    return (
        f"{server:9}{row['direction']:5}{row['case']:20}{row['engine']:20}{row['seconds']:8.3f} s "
        f"{row['cpu']:8.3f} cpu {row['peak MiB']:6} MiB {row['x ours']:>7} x ours"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two rounds with a sixteenth of the bytes: to try the tools"
    )
    labels = ", ".join(case.label for case in cases(False))
    parser.add_argument("--server", action="append", choices=NAMES, help=f"default: {', '.join(SERVERS)}")
    parser.add_argument("--case", action="append", help=f"only this one (may be repeated), of {labels}")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="only this one")
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="only this one (may be repeated)")
    parser.add_argument("--rounds", type=int, help="runs of each engine (default 5)")
    parser.add_argument("--before", metavar="CHECKOUT", help="measure another checkout of this project as well")
    parser.add_argument("--record", action="store_true", help="record for the report although something is left out")
    options = parser.parse_args(arguments)
    packages = {package.name: package for package in (ours(), peer(), tools())}
    for name in options.server or SERVERS:
        bench_server(name, options, packages)


if __name__ == "__main__":
    main()
