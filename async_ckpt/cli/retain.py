"""``async-ckpt retain``: the rules of retention for what is in the store already. What they do not keep is shown; with
``--yes`` removed.

A task that runs is left to its own rules: nobody here knows what it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import layout
from ..config import Config
from ..errors import StoreError, UsageError
from ..layout import newest
from ..retention.apply import Retention
from ..retention.rules import rules_of
from ..stores.base import Store
from ..system.printable import visible
from ..task.listing import list_many
from ..task.lookup import run_with_store
from ..task.runs import checkpoints_of_run, is_running
from .output import print_table, size_text
from .store import store_of

FOUND, REMOVED, REFERENCED, RUNNING, KEPT = "found", "removed", "referred to", "runs", "kept"


def retain(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the rules do not keep, each with what became of it (``done``)."""
    config = replace(
        Config.from_env(), keep_last=options.keep_last, keep_best=options.keep_best, keep_every=options.keep_every
    )
    if min(options.keep_last, options.keep_every) < 0 or not rules_of(config):
        raise UsageError(
            "There is no rule", hint="Give --keep-last, --keep-best or --keep-every, with a number above 0"
        )
    tasks: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in list_many(options.flow, options.run, options.step, first=options.at):
        tasks[one["pathspec"]].append(one)
    rows: list[dict[str, Any]] = []
    for pathspec, found in sorted(tasks.items()):
        rows += _retain_task(pathspec, found, options, config)
    if kept := sum(one["done"] == KEPT for one in rows):
        removed = sum(one["done"] == REMOVED for one in rows)
        raise StoreError(
            f"{kept} checkpoints could not be removed, {removed} were", hint="The lines above say why. Run it again"
        )
    return rows


def _retain_task(
    pathspec: str, found: list[Mapping[str, Any]], options: argparse.Namespace, config: Config
) -> list[dict[str, Any]]:
    parts = layout.parse_key(found[0]["key"])
    flow, run, step, task_id = pathspec.split("/")
    task = layout.TaskInfo(flow, run, step, task_id, 0, parts.scope, parts.identifier)
    by_key = {one["key"]: one for one in found}
    runs = is_running(pathspec, max(map(newest.moment, found)))

    def row(key: str, done: str) -> dict[str, Any]:
        one = by_key.get(key, {})
        return {"key": key, "size": one.get("size"), "created": newest.shown(one), "done": done}

    async def look(store: Store) -> list[dict[str, Any]]:
        retention = Retention(store, task, rules_of(config), config)
        keys = await retention.candidates(most=None)
        referenced = checkpoints_of_run(pathspec) if keys and not runs and not options.referenced else set()
        may_go = [key for key in keys if key not in referenced] if not runs else []
        removed = await retention.remove(may_go) if options.yes else []
        if retention.notice:
            print(visible(retention.notice, 1000), file=sys.stderr)

        def done(key: str) -> str:
            if key not in may_go:
                return RUNNING if runs else REFERENCED
            return REMOVED if key in removed else KEPT if options.yes else FOUND

        return [row(key, done(key)) for key in keys]

    return run_with_store(store_of(options), config, look)


def show(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if not found:
        print("the rules keep everything")
        return
    rows = [[one["done"], size_text(one["size"]), one["created"], visible(one["key"], 1000)] for one in found]
    print_table(("done", "size", "created", "key"), rows, right=("size",))
    if any(one["done"] == RUNNING for one in found):
        print("Tasks that run are left to their own rules")
    if any(one["done"] == REFERENCED for one in found):
        print("Artifacts refer to some: these go only with --referenced")
    if not options.yes:
        print("Nothing was removed. --yes removes what was found")
