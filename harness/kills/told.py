"""What a task that is killed tells whoever kills it, and the orders that it takes from there.

What it tells are JSON objects, each written at once, so that none is lost or torn when it is killed:

- ``begin``: ``[number, kind]``, before a save;
- ``saved``: ``[id, number, kind]`` of what was promised; ``seconds``: ``[save, write before]``;
- ``started``; ``resumed``: ``[attempt, version, fault]`` of what the attempt began with, or None;
- ``report``: lines for people; ``error``: what must not happen; ``flush``: the error of the flush, or an empty text;
- ``listed``: ids of what the product says is committed; after it, it waits for its last order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError
from async_ckpt.spool.journal import COMMITTED
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import TASK

#: Orders: end as a step that failed; end as one that is done, first with a flush, then for good.
FAIL, FINISH, CLOSE = "fail", "finish", "close"

#: Of a wait (seconds).
LIMIT_S = 120.0

#: More than so many that are not in the store: wait for the last.
BACKLOG = 6

#: Numbers of an attempt's saves begin at so many times its own.
NUMBERS = 100_000

Say = Callable[..., None]


def start(root: str, store: StoreSpec, attempt: int, say: Say) -> Checkpointer:
    """The checkpointer of an attempt; what it says is told from now on."""
    write_lines_with(lambda line: say(report=line))
    task = replace(TASK, attempt=attempt)
    checkpointer = Checkpointer.start(root, task, store, Config.from_env(), uploader="process")
    say(started=True)
    return checkpointer


def resume(checkpointer: Checkpointer, folder: str, fault_of: Callable[[str, int], str], say: Say) -> str:
    """Load the newest checkpoint into ``folder``. Returns its kind; empty: there is none."""
    found = checkpointer.load_newest("fresh", folder)
    if found is None:
        say(resumed=None)
        return ""
    kind: str = found["metadata"]["kind"]
    say(resumed=[found["attempt"], found["version_id"], fault_of(kind, found["metadata"]["number"])])
    return kind


def flush(checkpointer: Checkpointer, say: Say) -> None:
    """Flush, and tell how that ended."""
    why = ""
    try:
        checkpointer.flush(LIMIT_S)
    except CheckpointError as error:
        why = str(error)
    say(flush=why)


def finish(checkpointer: Checkpointer, say: Say) -> None:
    """The same, and tell what is committed."""
    flush(checkpointer, say)
    entries = [entry for entry in checkpointer.list() if entry["state"] == COMMITTED]
    say(listed=[f"{entry['attempt']}.{entry['name']}.{entry['version_id']}" for entry in entries])
