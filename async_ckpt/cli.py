"""``async-ckpt``: checkpoints from a shell.

Inside a step with ``@checkpoint`` (and its subprocesses) every command works on the task, found through the
environment. Outside, ``list --task`` and ``load`` read from the datastore Metaflow is configured for, and ``--spool``
names the spool of a task that was killed. Exit status: 0 done, 1 it failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__, capture, layout
from .config import ENV_SPOOL, Config
from .errors import CheckpointError, UsageError
from .layout import newest
from .spool.spool import Spool
from .system.printable import dumps
from .task.checkpointer import Checkpointer
from .task.listing import list_task
from .task.loader import SHARDS, load_outside
from .task.options import SaveOptions
from .task.progress import format_bytes
from .task.reference import CheckpointInfo
from .task.which import text_of, who_serves

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; see the module's docstring for the exit status."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # A name that no terminal can show is no reason to show nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = options.command(options)
    except CheckpointError as error:
        print(f"async-ckpt {options.name}: {error}", file=sys.stderr)
        if options.json:
            _print(dumps({"error": str(error), "kind": error.kind}))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    _print(dumps(result) if options.json else options.text(result))


def _print(text: str) -> None:
    """Write to stdout, unless its reader (head, less) has seen enough and is gone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at its end.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="async-ckpt", description="Save, list and load checkpoints of a Metaflow task."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="name", required=True)

    save = _command(commands, "save", _save, _text_save, "save a file or directory as a checkpoint of this task")
    save.add_argument("path")
    _add_options_of_saves(save)
    save.add_argument("--metadata", default="{}", help="a JSON object; what is no JSON is kept as text")
    save.add_argument("--snapshot", default=SaveOptions.snapshot, help=f"one of {', '.join(capture.STRATEGIES)}")
    save.add_argument("--collective", action="store_true", help="all ranks save one checkpoint, each its part")
    save.add_argument(
        "--rank", type=int, default=None, help="of a collective save (default: $RANK, or the gang's node)"
    )
    save.add_argument("--world-size", type=int, default=None, help="how many ranks there are")
    save.add_argument("--wait", action="store_true", help="until it is in the store")

    watch = _command(
        commands, "watch", _watch, _text_watch,
        "save every finished checkpoint that a trainer writes to a directory, until SIGINT or SIGTERM",
    )  # fmt: skip
    watch.add_argument("path", metavar="DIR")
    watch.add_argument(
        "--pattern", default="checkpoint-*", help="of directories or files in DIR (default: %(default)s)"
    )
    watch.add_argument("--settle", type=float, metavar="SECONDS", help="how long one must be quiet (default: 30)")
    watch.add_argument("--done", metavar="NAME", help="a file in a checkpoint that says that it is finished")
    watch.add_argument(
        "--metadata-from",
        metavar="FILE",
        help=(
            "a JSON file in a checkpoint, e.g. trainer_state.json: its single values and the last entry of each history"
        ),
    )
    watch.add_argument("--move", action="store_true", help="take each checkpoint out of DIR")
    watch.add_argument(
        "--keep", type=int, metavar="N", help="remove from DIR what is in the store, but for the newest N"
    )
    watch.add_argument("--no-existing", action="store_true", help="leave what is there already")
    watch.add_argument(
        "--group",
        metavar="REGEX",
        default="auto",
        help="what the names of one checkpoint's files have in common (default: known shapes; '': each is by itself)",
    )
    _add_options_of_saves(watch)

    _command(commands, "status", _status, _text_status, "how far the store is behind")

    flush = _command(
        commands, "flush", _flush, lambda _: "everything is in the store", "wait until everything is in the store"
    )
    flush.add_argument("--timeout", type=float, default=None, metavar="SECONDS")

    listing = _command(commands, "list", _list, _text_list, "checkpoints of this task, or of another, newest first")
    listing.add_argument("--name", dest="checkpoint", default=None)
    listing.add_argument("--attempt", metavar="N|all", help="(default: all of this task; with --task, the last one)")
    listing.add_argument("--full-namespace", action="store_true", help="those of this step from all runs")
    listing.add_argument("--task", metavar="FLOW/RUN/STEP/TASK", help="another task")

    _command(commands, "which", lambda _: who_serves(), text_of, "who serves @checkpoint and Checkpoint here")

    load = _command(commands, "load", _load, lambda r: f"loaded {r['key']}", "load a checkpoint into a directory")
    load.add_argument("key", help="a key as 'list' shows it")
    load.add_argument("path")
    load.add_argument("--shard", default="all", choices=SHARDS, help="of a checkpoint that ranks saved together")
    load.add_argument(
        "--clean", action="store_true", help="take away what is in the directory and not in the checkpoint"
    )
    return parser


def _add_options_of_saves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", dest="checkpoint", default=layout.DEFAULT_NAME)
    parser.add_argument("--no-latest", action="store_true", help="a retry does not load it by itself")
    parser.add_argument("--storage-format", default=SaveOptions.storage_format, choices=layout.STORAGE_FORMATS)


def _command(commands: Any, name: str, run: Any, text: Any, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--spool", metavar="DIR", help=f"the task's spool (default: ${ENV_SPOOL})")
    parser.set_defaults(command=run, text=text)
    return parser


def _checkpointer(options: argparse.Namespace) -> Checkpointer:
    if options.spool:
        return Checkpointer(Spool.open(options.spool), Config.from_env())
    return Checkpointer.from_environment()


# -- commands ----------------------------------------------------------------------------------------------------------


def _save(options: argparse.Namespace) -> dict[str, Any]:
    try:
        metadata = json.loads(options.metadata)
    except (ValueError, RecursionError) as error:
        metadata = options.metadata
        log.warning(f"--metadata is not JSON, and is kept as text: {error}. JSON is e.g. --metadata '{{\"epoch\": 3}}'")
    checkpointer = _checkpointer(options)
    reference = checkpointer.save(
        options.path, name=options.checkpoint, metadata=metadata, latest=not options.no_latest,
        storage_format=options.storage_format, snapshot=options.snapshot, collective=options.collective,
        rank=options.rank, world_size=options.world_size,
    )  # fmt: skip
    if options.wait:
        reference.wait()
    return {**reference, "state": reference.state}


def _watch(options: argparse.Namespace) -> dict[str, Any]:
    from .watch import Watch, WatchOptions  # Late: no other command needs it.

    checkpointer = _checkpointer(options)
    given = WatchOptions(
        pattern=options.pattern, settle=options.settle, done=options.done, metadata_from=options.metadata_from,
        name=options.checkpoint, latest=not options.no_latest, move=options.move, keep=options.keep,
        existing=not options.no_existing, group=options.group or None, storage_format=options.storage_format,
    )  # fmt: skip
    signals = {signal.SIGINT, signal.SIGTERM}
    # Before the watch starts its threads, which are then blocked as well. One that is ignored is heard all the same.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    began_ns = checkpointer.spool.attempt_began_ns()
    watch = Watch(checkpointer, options.path, given, checkpointer.config, began_ns=began_ns)
    signal.sigwait(signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)  # A second one ends it at once.
    watch.stop()
    return {"saved": watch.saved}


def _status(options: argparse.Namespace) -> dict[str, Any]:
    return _checkpointer(options).status()


def _flush(options: argparse.Namespace) -> dict[str, Any]:
    _checkpointer(options).flush(options.timeout)
    return {"pending": 0}


def _list(options: argparse.Namespace) -> list[CheckpointInfo]:
    if options.task is None:
        return _checkpointer(options).list(
            name=options.checkpoint, attempt=options.attempt, within_task=not options.full_namespace
        )
    if options.full_namespace:
        raise UsageError("--task and --full-namespace exclude each other")
    return list_task(options.task, name=options.checkpoint, attempt=options.attempt, spool=options.spool)


def _load(options: argparse.Namespace) -> dict[str, Any]:
    if options.spool or os.environ.get(ENV_SPOOL):
        return _checkpointer(options).load(options.key, options.path, shard=options.shard, clean=options.clean)
    from .stores.metaflow import default_spec  # Late: it imports Metaflow.

    return load_outside([default_spec()], options.key, options.path, shard=options.shard, clean=options.clean)


# -- what people read --------------------------------------------------------------------------------------------------


def _text_save(reference: dict[str, Any]) -> str:
    return f"{reference['state'].lower()}: {reference['key']} ({format_bytes(reference['size'])})"


def _text_watch(result: dict[str, Any]) -> str:
    return f"saved {result['saved']} checkpoint{'s' if result['saved'] != 1 else ''}"


def _text_status(status: dict[str, Any]) -> str:
    lines = [
        f"pending         {status['pending']} ({format_bytes(status['pending_bytes'])})",
        f"throughput      {status['bytes_per_s'] / 1e6:.0f} MB/s",
        f"pace            {_pace(status['pace'])}",
        f"would be lost   {_text_exposure(status['exposure'])}",
        f"committed       {status['committed']} (last: {status['last_committed'] or '-'})",
        f"failed          {status['failed_count']}",
        f"leases          {status['leases']}",
        f"agent           pid {status['pid']}, uploader pid {status['uploader_pid'] or '-'}",
        f"spool           {status['spool']}",
    ]
    lines += [f"error           {text}" for text in status["errors"]]
    lines += [f"warning         {text}" for text in status["warnings"]]
    return "\n".join(lines)


def _pace(pace: dict[str, Any]) -> str:
    rate = f"{pace['bytes_per_s'] / 1e6:.1f} MB/s" if pace["bytes_per_s"] else "full speed"
    return f"{rate}: {pace['why']}"


def _text_exposure(exposure: dict[str, Any]) -> str:
    """How much work would be lost now, and until when."""
    if exposure["machine_s"] is None:
        return "not known yet"
    text = f"{exposure['machine_s']:.0f} s of work with this machine, {exposure['process_s']:.0f} s with the process"
    if not exposure["saves"]:
        return text
    until = exposure["next_durable_s"]
    when = f"the next is in the store in about {until:.0f} s" if until is not None else exposure["next_durable_why"]
    return f"{text}; saves only on this disk: {exposure['saves']} ({when})"


def _text_list(found: list[CheckpointInfo]) -> str:
    if not found:
        return "no checkpoints"
    rows = [("STATE", "ATTEMPT", "VERSION", "NAME", "SIZE", "CREATED", "KEY")]
    for data in found:
        # Others may have written anything but the key.
        size = format_bytes(data["size"]) if isinstance(data.get("size"), (int, float)) else "?"
        fields = [str(data.get(field, "?")) for field in ("attempt", "version_id", "name")]
        rows.append((data["state"], *fields, size, newest.shown(data), data["key"]))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[6]]) for row in rows)


if __name__ == "__main__":  # In a pod there is a code package, and no script of an installed one.
    main()
