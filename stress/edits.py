"""Big files are edited at random between saves, while objects vanish or are replaced and processes die.

    python -m stress.edits [--edits 1000] [--place ext4 xfs btrfs moto rclone ceph] [--seed N] [--most MIB]

At each place a task saves after one to three edits (``harness/files/edits.py``: in place, appended, shifted, truncated,
holes, chunks swapped, renamed, merged, other content of the same CRC-32, ...); between saves objects of the checkpoint
before are deleted or replaced by others of the same size, the agent or its uploader is killed, or another machine goes
on from the store (``harness/kills/edited_saves.py``). Every checkpoint is read from the store and compared, SHA-256 by
SHA-256. Exit status 1 if one is not what was saved. xfs and btrfs are loop-mounted (needs root).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.stores.base import StoreSpec
from harness.files import filesystems
from harness.kills.edited_saves import EditedSaves, Found, Objects, on_server
from harness.s3 import ceph, servers
from stress.bench import results
from stress.bench.environment import caveats, memory_directory

COMMAND = "python -m stress.edits"
#: Local stores by file system, then S3 by server.
LOCAL = {"ext4": "disk", "xfs": "xfs", "btrfs": "btrfs"}
SERVERS = ("moto", "rclone", "ceph")
_IMAGE_BYTES = 4 << 30

Place = tuple[Path, tuple[StoreSpec, Objects] | None]


@contextlib.contextmanager
def provided(name: str, base: Path) -> Iterator[Place]:
    """A directory for machines, and a store: with the directory's file system, or a server's."""
    if name in LOCAL:
        with filesystems.provided(LOCAL[name], base, size=_IMAGE_BYTES) as folder:
            yield folder, None
        return
    with contextlib.ExitStack() as stack:
        memory = Path(stack.enter_context(memory_directory()))
        if name == "moto":
            server = stack.enter_context(servers.moto())
        elif name == "rclone":
            server = stack.enter_context(servers.rclone(memory))
        else:
            server = stack.enter_context(ceph.gateway(memory))
        yield base, on_server(server, "edits")


def row_of(name: str, found: Found, seconds: float) -> dict[str, Any]:
    return {
        "store": name, "edits": found.edits.total(), "saves": found.saves, "compared": found.compared,
        "GB saved": found.bytes / 1e9, "objects deleted": found.troubles["an object is deleted"],
        "replaced": found.troubles["an object is replaced"],
        "processes killed": found.troubles["the agent is killed"] + found.troubles["the uploader is killed"],
        "machines": 1 + found.troubles["another machine"], "failed and said so": len(found.reported), "s": seconds,
        "wrong": len(found.wrong),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--edits", type=int, default=1000, help="at all places together")
    parser.add_argument("--place", choices=[*LOCAL, *SERVERS], nargs="+", default=[*LOCAL, *SERVERS])
    parser.add_argument("--most", type=int, default=120, help="MiB of all files together")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-record", action="store_true", help="keep the figures out of BENCHMARKS.md")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rows: list[dict[str, Any]] = []
    kinds: Counter[str] = Counter()
    for number, name in enumerate(options.place):
        with tempfile.TemporaryDirectory(prefix="async-ckpt-edits-") as base, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            with provided(name, Path(base)) as (folder, place):
                began = time.monotonic()
                life = EditedSaves(folder, patch, place, options.seed + number, most=options.most << 20)
                found = life.run(-(-options.edits // len(options.place)))
        kinds += found.edits
        rows.append(row_of(name, found, time.monotonic() - began))
        print(rows[-1], *found.wrong, *found.reported, sep="\n  ", flush=True)
    notes = [*caveats(quick=False), f"Edits: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}."]
    if not options.no_record:
        results.record("edits", results.command(COMMAND, options.seed), rows, notes)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
