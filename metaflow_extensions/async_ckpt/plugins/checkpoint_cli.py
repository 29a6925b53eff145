"""``python flow.py checkpoint list …``: the commands of ``async-ckpt``, for this flow and its datastore."""

from __future__ import annotations

from typing import Any

from metaflow._vendor import click

#: Commands that take a flow, and would ask for one.
_OF_FLOWS = ("list", "retain", "gc")


@click.group()  # type: ignore[untyped-decorator]
def cli() -> None:
    """Nothing but a place for the command."""


@cli.command(  # type: ignore[untyped-decorator]
    name="checkpoint",
    help="List, show, load, compare, check and remove checkpoints of this flow; see 'checkpoint --help'.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)  # type: ignore[untyped-decorator]
@click.pass_obj  # type: ignore[untyped-decorator]
def checkpoint(obj: Any, arguments: tuple[str, ...]) -> None:
    from async_ckpt.cli import main

    from .artifact_store import store_of_flow

    given = list(arguments) or ["--help"]
    if given[0] in _OF_FLOWS and not any(each.split("=")[0] in ("--flow", "--task") for each in given):
        given[1:1] = ["--flow", obj.flow.name]
    spec, _ = store_of_flow(obj.flow, obj.flow_datastore)
    main(given, at=spec, prog=f"{obj.flow.name} checkpoint")
