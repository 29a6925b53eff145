"""What checkpoints cost a training loop with PyTorch, beside other ways to save; on a GPU where there is one.

    python -m stress.gpu_loop [--device cpu|cuda] [--only blocked,steps,memory,restore] [--minutes N]

A language model with Adam trains in a Metaflow task, and in a second one, which has metaflow-checkpoint instead. Each
way to save takes a checkpoint, in turns and random order (``blocked``); blocks of steps run with checkpoints and
without (``steps``); 200 checkpoints are taken and the memory is watched (``memory``); each way to come back is tried
(``restore``). Whatever is restored is compared with what was saved, bit by bit.

The interpreters need PyTorch. Without ``--ours`` and ``--peer`` they are environments that pip makes (3 GB), around the
one that ``ASYNC_CKPT_FRAMEWORKS_VENV`` names. ``--peer none`` leaves the incumbent out; then nothing needs a network.
The exit status is 1 if anything was restored that is not what was saved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from stress.bench import loop_runs, results
from stress.bench.environment import Package, available_memory, caveats, touch_memory, work_directory

COMMAND = "python -m stress.gpu_loop"
PARTS = {
    "blocked": loop_runs.blocked, "steps": loop_runs.steps, "memory": loop_runs.memory, "restore": loop_runs.restore,
}  # fmt: skip
_PARAMETERS = {"cpu": 100_000_000, "cuda": 1_000_000_000}
_TOKENS = {"cpu": 256, "cuda": 16_384}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="about so long in all (default 60)")
    parser.add_argument("--parameters", type=int, help="of the model (default: 0.1 billion; on a GPU 1 billion)")
    parser.add_argument("--tokens", type=int, help="a step (default: 256; on a GPU 16,384)")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch (default: its own)")
    parser.add_argument("--savers", default="", help="only these, such as torch.save,save,async,dcp-process")
    parser.add_argument("--rounds", type=int, default=30, help="blocked: checkpoints of each at most (default 30)")
    parser.add_argument("--every", type=int, default=20, help="steps: from one checkpoint to the next (default 20)")
    parser.add_argument("--blocks", type=int, default=3, help="steps: how often each runs (default 3)")
    parser.add_argument("--checkpoints", type=int, default=200, help="memory: how many (default 200)")
    parser.add_argument("--restores", type=int, default=5, help="restore: how often each (default 5)")
    parser.add_argument("--stores", default="local,s3", help="restore: from which (default: %(default)s)")
    parser.add_argument("--out", help="write the rows there as JSON, and record nothing for the report")
    parser.add_argument("--ours", help="the interpreter of an environment with this package and PyTorch")
    parser.add_argument("--peer", help='that of one with metaflow-checkpoint and PyTorch, or "none"')
    options = parser.parse_args(arguments)
    if not (options.ours and options.peer):
        from harness.flow_runs import frameworks  # It needs what a machine for a single run may lack.

        options.ours = options.ours or frameworks.find_or_make_with_ours()
        options.peer = options.peer or frameworks.find_or_make_incumbent()
    options.gpu = has_gpu(options.ours)
    options.device = options.device or ("cuda" if options.gpu else "cpu")
    options.parameters = options.parameters or _PARAMETERS[options.device]
    options.tokens = options.tokens or _TOKENS[options.device]
    return options


def has_gpu(python: str) -> bool:
    """Whether PyTorch in that environment sees one."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([python, "-c", code], capture_output=True, cwd="/").returncode == 0


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    peer = None if options.peer == "none" else Package("peer", options.peer)
    plan = loop_runs.Plan(options, Package("ours", options.ours), peer)
    suffix = "_cuda" if options.device == "cuda" else ""
    notes = caveats(quick=options.rounds < 10)
    if not options.gpu:
        notes.append("No GPU was measured: there was none.")
    touch_memory(min(available_memory(), 12 * 16 * options.parameters))
    told: dict[str, list[dict[str, Any]]] = {}
    for part in options.only.split(","):
        with work_directory() as work:
            rows, more, extra = PARTS[part](plan, work)
        for row in rows:
            print(
                {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
        told[part] = rows
        if not options.out:
            results.record(f"loop_{part}{suffix}", results.command(COMMAND), rows, [*more, *notes], **extra)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(told, file, indent=1)
    return any(row.get("bit-equal") is False for rows in told.values() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
