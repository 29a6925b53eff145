"""A trainer that knows nothing of us: a script that writes ``checkpoint-N/`` directories, each at a speed of its own.

    python harness/watches/trainer.py DIR COUNT [--seed 0] [--size 200000] [--slowest 0.02] [--stall 0]
                                    [--way plain|rename|marker]

It imports nothing of this package; ``expected`` tells a reader what each directory holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time

FILES = ("model.safetensors", "optimizer/state.pt", "rng", "trainer_state.json")
_CHUNKS = 8


def expected(seed: int, number: int, size: int) -> dict[str, bytes]:
    """Relative path → content of ``checkpoint-<number>`` (a file is between 1 and ``size`` bytes long)."""
    source = random.Random(f"{seed} {number}")
    content = {name: source.randbytes(source.randint(1, size)) for name in FILES[:-1]}
    return {**content, FILES[-1]: json.dumps({"global_step": number}).encode()}


def write(folder: str, number: int, seed: int, size: int, slowest_s: float, stall_s: float) -> None:
    """Write one checkpoint, each chunk after a pause of up to ``slowest_s``; one checkpoint in twenty stalls for
    ``stall_s`` in the middle of a file.
    """
    pace = random.Random(f"pace {seed} {number}")
    slow = pace.uniform(0, slowest_s)
    stalls = pace.choice(FILES) if pace.random() < 0.05 else None
    for name, content in expected(seed, number, size).items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            step = len(content) // _CHUNKS + 1
            for start in range(0, len(content), step):
                time.sleep(pace.uniform(0, slow))
                file.write(content[start : start + step])
                if name == stalls and start == 0:
                    time.sleep(stall_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=200_000)
    parser.add_argument("--slowest", type=float, default=0.02)
    parser.add_argument("--stall", type=float, default=0.0)
    parser.add_argument("--way", choices=("plain", "rename", "marker"), default="plain")
    options = parser.parse_args()
    for number in range(options.first, options.first + options.count):
        final = os.path.join(options.directory, f"checkpoint-{number}")
        folder = os.path.join(options.directory, f"tmp-checkpoint-{number}") if options.way == "rename" else final
        write(folder, number, options.seed, options.size, options.slowest, options.stall)
        if options.way == "rename":
            os.rename(folder, final)
        elif options.way == "marker":
            with open(os.path.join(final, "DONE"), "w"):
                pass


if __name__ == "__main__":
    main()
