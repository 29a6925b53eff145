"""Commands that work on the task: ``save``, ``watch``, ``status``, ``flush``."""

from __future__ import annotations

import argparse
import json
import logging
import signal
from typing import Any

from ..task.progress import format_bytes
from .parts import checkpointer_of

log = logging.getLogger(__name__)


def save(options: argparse.Namespace) -> dict[str, Any]:
    try:
        metadata = json.loads(options.metadata)
    except (ValueError, RecursionError) as error:
        metadata = options.metadata
        log.warning(f"--metadata is not JSON, and is kept as text: {error}. JSON is e.g. --metadata '{{\"epoch\": 3}}'")
    checkpointer = checkpointer_of(options)
    reference = checkpointer.save(
        options.path, name=options.checkpoint, metadata=metadata, latest=not options.no_latest,
        storage_format=options.storage_format, snapshot=options.snapshot, collective=options.collective,
        rank=options.rank, world_size=options.world_size,
    )  # fmt: skip
    if options.wait:
        reference.wait()
    return {**reference, "state": reference.state}


def watch(options: argparse.Namespace) -> dict[str, Any]:
    from ..watch import Watch, WatchOptions  # Late: no other command needs it.

    checkpointer = checkpointer_of(options)
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


def status(options: argparse.Namespace) -> dict[str, Any]:
    return checkpointer_of(options).status()


def flush(options: argparse.Namespace) -> dict[str, Any]:
    checkpointer_of(options).flush(options.timeout)
    return {"pending": 0}


# -- what people read --------------------------------------------------------------------------------------------------


def text_of_save(reference: dict[str, Any]) -> str:
    return f"{reference['state'].lower()}: {reference['key']} ({format_bytes(reference['size'])})"


def text_of_watch(result: dict[str, Any]) -> str:
    return f"saved {result['saved']} checkpoint{'s' if result['saved'] != 1 else ''}"


def text_of_status(status: dict[str, Any]) -> str:
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
