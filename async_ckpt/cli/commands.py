"""``async-ckpt``: checkpoints from a shell.

Inside a step with ``@checkpoint`` (and its subprocesses) every command works on the task, found through the
environment. Outside, ``list``, ``load`` and the like read from the datastore Metaflow is configured for. ``--spool``
names the spool of a task that was killed. Exit status: 0 done, 1 it failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__, capture, layout
from ..config import ENV_SPOOL
from ..errors import CheckpointError, UsageError
from ..stores.base import StoreSpec
from ..system.printable import dumps
from ..task.loader import SHARDS
from ..task.options import SaveOptions
from ..task.which import text_of, who_serves
from . import doctor, gc, retain, store, task

_KEY = "a key as 'list' shows it"


def main(arguments: Sequence[str] | None = None, *, at: StoreSpec | None = None, prog: str = "async-ckpt") -> None:
    """Run one command; see the module's docstring for the exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    at : StoreSpec, optional
        The store to look in, outside of tasks. Default: the one that Metaflow is configured for.
    prog : str
        How it was called.
    """
    options = parser(prog).parse_args(arguments)
    options.at = at
    if isinstance(sys.stdout, io.TextIOWrapper):  # A name that no terminal can show is no reason to show nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = options.command(options)
    except CheckpointError as error:
        print(f"{prog} {options.name}: {error}", file=sys.stderr)
        if options.json:
            said = dumps({"error": str(error), "kind": error.kind})
            _print(lambda: print(said))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    _print(lambda: print(dumps(result)) if options.json else options.show(result, options))


def _print(write: Callable[[], None]) -> None:
    """Write to stdout, unless its reader (head, less) has seen enough and is gone."""
    try:
        write()
        if sys.stdout is not None:  # Somebody has closed it.
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at its end.


def parser(prog: str = "async-ckpt") -> argparse.ArgumentParser:
    """All commands."""
    made = argparse.ArgumentParser(
        prog=prog, description="Save, list, load, compare, check and remove checkpoints of Metaflow's tasks."
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = made.add_subparsers(dest="name", required=True)

    save = _command(
        commands, "save", task.save, _says(task.text_of_save), "save a file or directory as a checkpoint of this task"
    )
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
        commands, "watch", task.watch, _says(task.text_of_watch),
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

    _command(commands, "status", task.status, _says(task.text_of_status), "how far the store is behind")

    flush = _command(
        commands,
        "flush",
        task.flush,
        _says(lambda _: "everything is in the store"),
        "wait until everything is in the store",
    )
    flush.add_argument("--timeout", type=float, default=None, metavar="SECONDS")

    listing = _command(
        commands, "list", store.list_checkpoints, store.show_list,
        "checkpoints of this task, of another, or of a flow, newest first",
    )  # fmt: skip
    listing.add_argument("--name", dest="checkpoint", default=None)
    listing.add_argument("--attempt", metavar="N|all", help="(default: all; with --task, the last one)")
    listing.add_argument("--full-namespace", action="store_true", help="those of this step from all runs")
    listing.add_argument("--task", metavar="FLOW/RUN/STEP/TASK", help="another task")
    listing.add_argument("--flow", help="all of a flow; with --run and --step, of these")
    listing.add_argument("--run", help="of this run of the flow")
    listing.add_argument("--step", help="of this step of the flow")
    listing.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="on the metadata, such as 'loss<0.3'; all must hold",
    )
    listing.add_argument(
        "--sort", default="", metavar="NAME", help="by this name in the metadata; --sort=-NAME: the greatest first"
    )
    listing.add_argument("--columns", metavar="NAME,NAME", help="names in the metadata that are shown")
    listing.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N")

    one = _command(commands, "show", store.show, store.show_one, "what is known of a checkpoint, and its files")
    one.add_argument("key", help=_KEY)

    _command(commands, "which", lambda _: who_serves(), _says(text_of), "who serves @checkpoint and Checkpoint here")

    load = _command(
        commands,
        "load",
        store.load,
        _says(lambda found: f"loaded {found['key']}"),
        "load a checkpoint into a directory",
    )
    load.add_argument("key", help=_KEY)
    load.add_argument("path")
    load.add_argument("--shard", default="all", choices=SHARDS, help="of a checkpoint that ranks saved together")
    load.add_argument(
        "--clean", action="store_true", help="take away what is in the directory and not in the checkpoint"
    )

    diff = _command(
        commands, "diff", store.diff, store.show_diff, "which files and bytes differ between two checkpoints"
    )
    diff.add_argument("old", help=_KEY)
    diff.add_argument("new", help=_KEY)

    verify = _command(
        commands, "verify", store.verify_checkpoints, store.show_verified, "read checkpoints, and check every byte"
    )
    verify.add_argument("keys", nargs="+", metavar="key", help=_KEY)

    check = _command(
        commands,
        "doctor",
        doctor.doctor,
        doctor.show_findings,
        "what this machine and the store can do, and what saves cost here",
    )
    check.add_argument("directory", nargs="?", help="where checkpoints are written (default: where spools are made)")

    note = _command(
        commands, "annotate", store.annotate_one, _says(lambda found: f"annotated {found['key']}"),
        "add to the metadata of a checkpoint, after an evaluation, say",
    )  # fmt: skip
    note.add_argument("key", help=_KEY)
    note.add_argument("metadata", help="a JSON object: '{\"accuracy\": 0.9}'")

    keep = _command(
        commands, "retain", retain.retain, retain.show,
        "show which checkpoints of a flow rules would not keep; with --yes, remove these",
    )  # fmt: skip
    keep.add_argument("--flow", required=True, help="whose checkpoints")
    keep.add_argument("--run", help="only of this run")
    keep.add_argument("--step", help="only of this step")
    keep.add_argument("--keep-last", type=int, default=0, metavar="N", help="of each task, the newest N of each name")
    keep.add_argument(
        "--keep-best", default="", metavar="'NAME min|max N'", help="the best N by a number in the metadata"
    )
    keep.add_argument("--keep-every", type=int, default=0, metavar="N", help="those whose version is a multiple of N")
    keep.add_argument("--referenced", action="store_true", help="also those that artifacts of their run refer to")
    keep.add_argument("--yes", action="store_true", help="remove what is shown")

    clean = _command(
        commands, "gc", gc.gc, gc.show,
        "show what crashed runs have left in the store and on this machine; with --yes, remove it",
    )  # fmt: skip
    clean.add_argument("--flow", help="in the store, only of this flow")
    clean.add_argument("--older-than", default=gc.DEFAULT_AGE, metavar="TIME", help="(default: %(default)s)")
    only = clean.add_mutually_exclusive_group()
    only.add_argument("--here", action="store_true", help="only on this machine")
    only.add_argument("--store", action="store_true", help="only in the store")
    clean.add_argument(
        "--directory",
        action="append",
        default=[],
        metavar="DIR",
        help="where trainers wrote, on other disks; may be repeated",
    )
    clean.add_argument("--unsent", action="store_true", help="also spools with checkpoints that are not in the store")
    clean.add_argument("--yes", action="store_true", help="remove what is shown")

    delete = _command(
        commands,
        "delete",
        store.delete_checkpoints,
        _says(lambda found: f"removed {len(found)}"),
        "remove checkpoints for good",
    )
    delete.add_argument("keys", nargs="+", metavar="key", help=_KEY)
    delete.add_argument("--yes", action="store_true", help="without asking")

    completion = _command(
        commands, "completion", _completion, _says(str), "a script that completes commands and options in a shell"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return made


def _completion(options: argparse.Namespace) -> str:
    try:
        import shtab  # Late: a pod has none, and saves there.
    except ImportError as error:
        raise UsageError("shtab is not installed, which writes such scripts", hint="pip install shtab") from error
    return str(shtab.complete(parser(), shell=options.shell))


def _says(text: Callable[[Any], str]) -> Callable[[Any, argparse.Namespace], None]:
    return lambda result, _: print(text(result))


def _add_options_of_saves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", dest="checkpoint", default=layout.DEFAULT_NAME)
    parser.add_argument("--no-latest", action="store_true", help="a retry does not load it by itself")
    parser.add_argument("--storage-format", default=SaveOptions.storage_format, choices=layout.STORAGE_FORMATS)


def _command(commands: Any, name: str, run: Any, show: Any, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--spool", metavar="DIR", help=f"the task's spool (default: ${ENV_SPOOL})")
    parser.set_defaults(command=run, show=show)
    return parser
