"""Whether lossless compression of checkpoints is worth anything: ``python -m stress.bench.compression [--kind K]``.

The second checkpoint of each series of ``stress.bench.series``, as the frameworks write it, through ``zstd -b`` in
memory on one core: plain, and with the bytes of its numbers put together by their place in the number (shuffled).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from typing import Any

from harness.flow_runs.frameworks import find_or_make_frameworks

from . import results
from .environment import caveats, work_directory
from .series import KINDS, made

COMMAND = "python -m stress.bench.compression"
LEVELS = (1, 3)
#: Bytes of a number.
_WIDTHS = {"hf_lora": 2, "accelerate_lora": 2}
#: Of each checkpoint so much is compressed, from its largest files.
_MOST_BYTES = 256 << 20
_SHUFFLE = """
import sys, numpy
path, width = sys.argv[1], int(sys.argv[2])
data = numpy.fromfile(path, numpy.uint8)
whole = len(data) // width * width
numpy.concatenate([data[:whole].reshape(-1, width).T.ravel(), data[whole:]]).tofile(path + ".shuffled")
"""
_ANSWER = re.compile(r"\(x?([\d.]+)\),\s*([\d.]+) MB/s,?\s*([\d.]+) MB/s")


def together(directory: str, path: str) -> int:
    """A checkpoint's largest files, one after the other, as one file; its bytes."""
    files = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    left = _MOST_BYTES
    with open(path, "wb") as target:
        for file in sorted(files, key=os.path.getsize, reverse=True):
            with open(file, "rb") as source:
                left -= target.write(source.read(left))
    return _MOST_BYTES - left


def compressed(path: str, level: int) -> tuple[float, float, float]:
    """Ratio, and MB/s to compress and to decompress."""
    command = ["zstd", f"-b{level}", "-i1", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = _ANSWER.findall((done.stdout + done.stderr).replace("\r", "\n"))
    if not found:
        raise SystemExit(f"{command} said: {done.stdout}{done.stderr}")
    ratio, compress, decompress = map(float, found[-1])
    return ratio, compress, decompress


def measure(kind: str, size: str, work: str) -> list[dict[str, Any]]:
    rows = []
    with made(kind, 2, size, work) as (directories, _), tempfile.TemporaryDirectory(dir=work) as own:
        path, width = os.path.join(own, "checkpoint"), _WIDTHS.get(kind, 4)
        count = together(directories[-1], path)
        subprocess.run([find_or_make_frameworks(), "-c", _SHUFFLE, path, str(width)], check=True)
        row: dict[str, Any] = {"series": KINDS[kind], "MB": count / 1e6}
        for name, file in (("", path), (f"{width} bytes shuffled", f"{path}.shuffled")):
            for level in LEVELS:
                ratio, compress, decompress = compressed(file, level)
                label = f"zstd -{level}" + (", shuffled" if name else "")
                row[label] = f"{ratio:.2f} x · {compress:,.0f} MB/s · back {decompress:,.0f} MB/s"
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    options = parser.parse_args()
    rows, notes = [], caveats(quick=options.quick)
    with work_directory() as work:
        for kind in options.kind or KINDS:
            rows += measure(kind, "quick" if options.quick else "full", work)
    results.record("compression", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()
