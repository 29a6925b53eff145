"""Commands on what is in the store: ``list``, ``show``, ``load``, ``diff``, ``verify``, ``annotate``, ``delete``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from .. import layout
from ..config import Config
from ..errors import IntegrityError, UsageError
from ..layout import newest
from ..manifest import Manifest
from ..retention.delete import delete
from ..stores import catalog
from ..stores.base import Store, StoreSpec
from ..system.printable import visible
from ..task.annotate import added, annotate_in
from ..task.difference import difference
from ..task.listed import CheckpointList, row
from ..task.listing import list_many, list_task
from ..task.loader import load_outside
from ..task.lookup import run_with_store
from ..task.query import chosen, conditions, names_of
from ..task.verify import verify
from .output import print_table, progress, size_text
from .parts import checkpointer_of, is_in_task

T = TypeVar("T")


def store_of(options: argparse.Namespace) -> StoreSpec:
    """Where to look: in the task's store, or in the one that Metaflow is configured for."""
    if is_in_task(options):
        return checkpointer_of(options).spool.store
    if options.at is not None:
        at: StoreSpec = options.at
        return at
    from ..stores.metaflow import default_spec  # Late: it imports Metaflow.

    return default_spec()


def ask(options: argparse.Namespace, function: Callable[[Store], Awaitable[T]]) -> T:
    """What a function finds in the store."""
    return run_with_store(store_of(options), Config.from_env(), function)


# -- list --------------------------------------------------------------------------------------------------------------


def list_checkpoints(options: argparse.Namespace) -> CheckpointList:
    many = options.flow or options.run or options.step
    if options.task is not None and (options.full_namespace or many):
        raise UsageError("--task excludes --full-namespace, --flow, --run and --step")
    if many:
        found = list_many(
            options.flow, options.run, options.step, name=options.checkpoint, attempt=options.attempt, first=options.at
        )
    elif options.task is not None:
        found = list_task(
            options.task, name=options.checkpoint, attempt=options.attempt, spool=options.spool, first=options.at
        )
    else:
        found = checkpointer_of(options).list(
            name=options.checkpoint, attempt=options.attempt, within_task=not options.full_namespace
        )
    wanted = conditions(None, options.where)
    left = chosen(found, wanted, options.sort)
    return CheckpointList(left[: options.limit] if options.limit else left, names_of(wanted, options.sort))


def show_list(found: CheckpointList, options: argparse.Namespace) -> None:
    if not found:
        print("no checkpoints")
        return
    columns = options.columns.split(",") if options.columns else found.columns()
    headings = ("state", "attempt", "version", "name", "size", "created", *columns, "key")
    rows = []
    for one in found:
        # Others may have written anything but the key.
        fields = [str(one.get(field, "?")) for field in ("state", "attempt", "version_id", "name")]
        values = row(one, columns)[-len(columns) :] if columns else []
        texts = [*fields, size_text(one.get("size")), newest.shown(one), *values, one["key"]]
        rows.append([visible(text, 300) for text in texts])
    print_table(headings, rows, right=("attempt", "version", "size", *columns))


# -- one or two of them ------------------------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> dict[str, Any]:
    async def read(store: Store) -> dict[str, Any]:
        data = await catalog.find(store, options.key)
        manifest = await _manifest(store, data)
        files = [{"path": entry.path, "size": entry.size} for entry in manifest.files] if manifest is not None else None
        links = (
            [{"path": link.path, "target": link.target} for link in manifest.links] if manifest is not None else None
        )
        return {**data, "files": files, "links": links}

    return ask(options, read)


def show_one(found: dict[str, Any], options: argparse.Namespace) -> None:
    for name, value in found.items():
        if name in ("files", "links"):
            continue
        if name == "size":
            text = f"{size_text(value)} ({value} bytes)"
        elif name == "metadata":
            text = json.dumps(value, indent=2, sort_keys=True, default=str)
        else:
            text = str(value)
        print(f"{name:16}{visible(text, 100_000)}")
    if found["files"] is None:
        print("files           not known: another package saved it, without a manifest")
        return
    print_table(
        ("size", "file"),
        [[size_text(entry["size"]), visible(entry["path"], 1000)] for entry in found["files"]]
        + [["link", visible(f"{link['path']} -> {link['target']}", 1000)] for link in found["links"]],
        right=("size",),
    )


def load(options: argparse.Namespace) -> dict[str, Any]:
    if is_in_task(options):
        return checkpointer_of(options).load(options.key, options.path, shard=options.shard, clean=options.clean)
    return load_outside([store_of(options)], options.key, options.path, shard=options.shard, clean=options.clean)


def diff(options: argparse.Namespace) -> list[dict[str, Any]]:
    async def compare(store: Store) -> list[dict[str, Any]]:
        manifests = []
        for key in (options.old, options.new):
            manifest = await _manifest(store, await catalog.find(store, key))
            if manifest is None:
                raise UsageError(
                    f"{key} has no manifest, so what is in its files is not known",
                    hint="metaflow-checkpoint saved it: load both, and compare the directories",
                )
            manifests.append(manifest)
        return [one._asdict() for one in difference(*manifests)]

    return ask(options, compare)


def show_diff(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if not found:
        print("the same")
        return
    rows = [
        [one["how"], size_text(one["bytes"]) if one["bytes"] is not None else "?", visible(one["path"], 1000)]
        for one in found
    ]
    print_table(("how", "differ", "path"), rows, right=("differ",))
    print(f"{len(found)} of its paths differ, by {size_text(sum(one['bytes'] or 0 for one in found))} at most")


async def _manifest(store: Store, data: Mapping[str, Any]) -> Manifest | None:
    if not isinstance(data.get("manifest"), str):
        return None
    key = layout.parse_key(data["key"]).manifest_key
    return Manifest.from_json(await catalog.read_json(store, key), where=key)


def verify_checkpoints(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for key in options.keys:
        data = ask(options, lambda store, key=key: catalog.find(store, key))  # type: ignore[misc]
        with progress(f"verify {data['name']}", int(data["size"])) as advance:
            result = ask(options, lambda store, key=key: verify(store, key, Config.from_env(), advance))  # type: ignore[misc]
        found.append({"key": key, **result._asdict()})
    if wrong := [one for one in found if one["wrong"]]:
        for one in wrong:
            print("\n".join(f"{one['key']}: {text}" for text in one["wrong"]), file=sys.stderr)
        raise IntegrityError(
            f"{len(wrong)} of {len(found)} checkpoints are damaged", hint="Load an earlier one; see the lines above"
        )
    return found


def show_verified(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    for one in found:
        known = f", {one['unchecked']} of them by their sizes alone" if one["unchecked"] else ""
        print(f"whole: {one['key']} ({one['files']} objects, {size_text(one['size'])}{known})")


def annotate_one(options: argparse.Namespace) -> dict[str, Any]:
    try:
        metadata = json.loads(options.metadata)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{options.metadata!r:.100} is not JSON: {error}", hint="'{\"accuracy\": 0.9}'") from error
    config = Config.from_env()
    return annotate_in([store_of(options)], options.key, added(metadata, {}, config), config)


def delete_checkpoints(options: argparse.Namespace) -> list[str]:
    config = Config.from_env()
    references = [ask(options, lambda store, key=key: catalog.find(store, key)) for key in options.keys]  # type: ignore[misc]
    if not options.yes:
        _confirm(references)

    async def remove(store: Store) -> list[str]:
        for reference in references:
            await delete(store, reference, config)
        return [str(reference["key"]) for reference in references]

    return ask(options, remove)


def _confirm(references: list[dict[str, Any]]) -> None:
    """Nothing is removed by a slip of the finger."""
    if not sys.stdin.isatty():
        raise UsageError("Nobody is there to say that these are to be removed", hint="Add --yes")
    for reference in references:
        print(f"{reference['key']}  {size_text(reference.get('size'))}  {newest.shown(reference)}")
    if input(f"Remove {len(references)} from the store for good? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("Nothing was removed")
