"""Everything, and ``BENCHMARKS.md``: ``python -m stress.bench [--quick]``."""

from __future__ import annotations

import argparse
import subprocess
import time

from . import (
    backlog,
    blocked,
    card,
    dedup,
    engines,
    environment,
    history,
    in_place,
    interference,
    listing,
    memory,
    overhead,
    pace,
    report,
    restore,
    results,
    save,
    threshold,
)

COMMAND = "python -m stress.bench"


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions: to try the tools, not for figures")
    quick = ["--quick"] if parser.parse_args().quick else []
    began = time.monotonic()
    with environment.work_directory() as work:
        results.record("machine", COMMAND, environment.machine_facts(work, environment.peer().python))
    for part in (
        overhead,
        threshold,
        save,
        blocked,
        in_place,
        engines,
        memory,
        interference,
        pace,
        dedup,
        history,
        listing,
        card,
        restore,
        backlog,
    ):
        part.main(quick)
    subprocess.run([environment.tools().python, "-m", "stress.bench.plots"], check=True)
    print(f"{report.write()} after {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
