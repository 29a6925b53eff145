"""``async-ckpt gc``: what crashed runs have left in the store and on this machine, shown, or with ``--yes`` removed."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from ..config import Config
from ..errors import UsageError
from ..retention import garbage
from ..spool import orphans
from ..stores.base import Store
from ..system import durations
from ..system.printable import visible
from ..task import listing
from ..task.lookup import run_with_store
from ..task.progress import format_seconds
from .output import print_table, size_text
from .store import store_of

DEFAULT_AGE = "7 days"
#: An upload that is under way is not garbage, and it may rest for as long as its store does not answer.
_LEAST_S = 3600.0

#: What a row says that was not removed, and why not.
FOUND, REMOVED, KEPT = "found", "removed", "kept"


def gc(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All that was found, each with what became of it (``done``)."""
    config, older_than_s = Config.from_env(), _age(options)
    found = [] if options.here else _in_store(options, config, older_than_s)
    return found + ([] if options.store else _here(options, config, older_than_s))


def _age(options: argparse.Namespace) -> float:
    try:
        found = durations.seconds(options.older_than)
    except ValueError as error:
        raise UsageError(
            f"--older-than {options.older_than!r} is no duration", hint=f"Give {durations.ALLOWED}"
        ) from error
    if found < _LEAST_S and options.yes:
        raise UsageError(
            f"--older-than {options.older_than!r} is too short: what is being uploaded in this moment would be removed",
            hint="Give an hour at least",
        )
    return found


def _in_store(options: argparse.Namespace, config: Config, older_than_s: float) -> list[dict[str, Any]]:
    needed = {one["key"] for one in listing.on_disk(listing.all_spools(config))}

    async def look(store: Store) -> list[dict[str, Any]]:
        now = await garbage.store_time(store) if options.yes else time.time()
        found = await garbage.find(store, options.flow, older_than_s=older_than_s, now=now, needed=needed)
        removed = await garbage.remove(store, found, config) if options.yes else []
        return [_row(one.kind, store.url(one.where), one, _done(options, one in removed)) for one in found]

    return run_with_store(store_of(options), config, look)


def _here(options: argparse.Namespace, config: Config, older_than_s: float) -> list[dict[str, Any]]:
    rows = []
    for one in orphans.find(config, older_than_s=older_than_s, beside=map(os.path.abspath, options.directory)):
        may_go = options.yes and (options.unsent or not one.unsent)
        rows.append(_row(one.kind, one.where, one, _done(options, may_go and orphans.remove(one))))
    return rows


def _done(options: argparse.Namespace, is_removed: bool) -> str:
    return REMOVED if is_removed else KEPT if options.yes else FOUND


def _row(kind: str, where: str, one: garbage.Garbage | orphans.Orphan, done: str) -> dict[str, Any]:
    return {"kind": kind, "where": where, "age_s": one.age_s, "size": one.size, "why": one.why, "done": done}


def show(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if not found:
        print(f"nothing that is older than {options.older_than} was left behind")
        return
    rows = [
        [
            one["done"], one["kind"], format_seconds(one["age_s"]) if one["age_s"] is not None else "?",
            size_text(one["size"]), visible(one["why"], 300), visible(one["where"], 1000),
        ]
        for one in found
    ]  # fmt: skip
    print_table(("done", "what", "age", "size", "why", "where"), rows, right=("age", "size"))
    kept = sum(one["done"] == KEPT for one in found)
    if not options.yes:
        print("Nothing was removed. 'async-ckpt gc --yes' removes these")
    elif kept:
        print(f"{kept} were kept. Spools with checkpoints that are not in the store go only with --unsent")
