"""Do one job, given as JSON, and print what was measured: ``python -m stress.bench.clients JOB``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict

from . import ENGINES
from .job import Engine, Job


def main() -> None:
    job = Job.from_json(sys.argv[1])
    kind = ENGINES[job.engine]
    engine: Engine = getattr(importlib.import_module(f".{kind.module}", __package__), kind.name)(job)
    # Libraries write to standard output as they like: the figures are its last line.
    print(json.dumps(asdict(engine.run())), flush=True)
    sys.stderr.flush()
    # Native libraries may abort while the interpreter ends under their threads; all is done by now.
    os._exit(0)


if __name__ == "__main__":
    main()
