"""``async-ckpt doctor``: what this machine and the store can do, and what saves will cost here.

Each check is made for real: files are captured, objects are written, copied and removed. What is made for it lies in
directories and keys of its own, and is removed again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import resource
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

from .. import capture, layout
from ..capture import lease
from ..config import Config
from ..errors import CheckpointError, os_reason
from ..retention.garbage import store_time
from ..spool.abilities import try_out
from ..spool.place import bases
from ..stores.base import Store, StoreSpec
from ..system.files import can_clone
from ..system.filesystems import kind_of, leases_hold
from ..task.lookup import run_with_store
from ..task.progress import format_bytes, format_seconds
from .output import print_table
from .store import store_of

GOOD, NOTE, BAD = "ok", "note", "bad"

#: Needed everywhere; and what makes things faster, with what is lost without it.
_NEEDED = ("metaflow", "anyio")
_BETTER = {
    "aiobotocore": "uploads to S3 go over boto3, which takes more of the CPU",
    "xxhash": "content that comes again is known by SHA-256, or not at all on a processor without instructions for it",
    "zlib-ng": "checksums take four times as long",
    "watchdog": "current.checkpoint.watch() looks at its directory again and again",
    "rich": "tables and progress are plain lines",
}
_MIB = 1 << 20
_SAVED_BYTES, _FILES = 64 * _MIB, 100
_SENT_BYTES = 16 * _MIB
_TIMES = 5
#: Below this a task that keeps some thousand files open may run out of descriptors.
_FEW_DESCRIPTORS = 4096
#: A clock that differs from the store's by more than this is to be known, in seconds: S3 refuses who is 15 minutes off.
_SKEW_S = 60.0


class Finding(NamedTuple):
    """One check: ``ok``, something to know (``note``), or something that will not work (``bad``)."""

    what: str
    state: str
    text: str


def doctor(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All findings; a check that fails is one of them."""
    config = Config.from_env()
    folder = options.directory or bases(None, config)[0]
    found = [*_versions(), *_machine(), *_guarded("directory", lambda: _directory(folder, config))]
    try:
        spec = store_of(options)
    except CheckpointError as error:
        found.append(Finding("store", BAD, str(error)))
    else:
        found += _guarded("store", lambda: _store(spec, config))
    return [one._asdict() for one in found]


def show_findings(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print_table(("what", "state", "finding"), [[one["what"], one["state"], one["text"]] for one in found], fold=True)
    bad = sum(one["state"] == BAD for one in found)
    print(f"{bad} of {len(found)} checks found something that will not work" if bad else "nothing is in the way")


def _guarded(what: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except CheckpointError as error:
        found.append(Finding(what, BAD, str(error)))
    except OSError as error:
        found.append(Finding(what, BAD, os_reason(error)))
    return found


# -- this process ------------------------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    yield Finding("python", GOOD, f"{platform.python_version()} ({sys.executable})")
    for name in _NEEDED:
        version = _version(name)
        yield Finding(name, GOOD if version else BAD, version or "is not installed, and nothing works without it")
    for name, lost in _BETTER.items():
        version = _version(name)
        yield Finding(name, GOOD if version else NOTE, version or f"is not installed: {lost}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "there, without a version" if importlib.util.find_spec(name.replace("-", "_")) else ""


def _machine() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _FEW_DESCRIPTORS
    text = f"{soft} open files at a time (up to {hard} with ulimit -n)"
    yield Finding("open files", NOTE if few else GOOD, f"{text}; a quarter of them may hold leases of captured files")
    with contextlib.suppress(OSError), open("/proc/sys/fs/lease-break-time") as file:
        yield Finding("lease-break-time", GOOD, f"{file.read().strip()} s until the kernel takes a lease by force")
    with contextlib.suppress(OSError):
        free = shutil.disk_usage("/dev/shm").free
        state = GOOD if free >= 1 << 30 else NOTE
        yield Finding(
            "/dev/shm", state, f"{format_bytes(free)} free: save_state() stages there what fits, else on the disk"
        )


# -- the disk ----------------------------------------------------------------------------------------------------------


def _directory(folder: str, config: Config) -> Iterator[Finding]:
    kind, free = kind_of(folder), shutil.disk_usage(folder).free
    yield Finding("spool", GOOD, f"{folder} on {kind}, {format_bytes(free)} free")
    if not os.access(folder, os.W_OK):
        yield Finding("spool", BAD, f"{folder} cannot be written to. Set METAFLOW_ASYNC_CKPT_SPOOL_DIR")
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix="async-ckpt-doctor-") as own:
        for note in try_out(own):
            yield Finding("spool", NOTE, note)
        can_lease = leases_hold(kind) and _can_lease(own)
        text = (
            "files are captured as links, however large they are"
            if can_lease
            else "no leases: files are cloned or copied"
        )
        yield Finding("leases", GOOD if can_lease else NOTE, text)
        yield Finding("reflinks", GOOD, "files can be cloned" if can_clone(own) else "files cannot be cloned here")
        for label, count in (
            (f"1 file of {format_bytes(_SAVED_BYTES)}", 1),
            (f"{_FILES} files of {format_bytes(_MIB)}", _FILES),
        ):
            seconds = _captures(own, count, _SAVED_BYTES if count == 1 else _MIB, config, guarded=can_lease)
            yield Finding("save()", GOOD, f"{label}: captured in {format_seconds(seconds)} here (median of {_TIMES})")


def _can_lease(folder: str) -> bool:
    path = os.path.join(folder, "lease")
    with open(path, "wb"):
        pass
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return lease.take(fd)
    finally:
        os.close(fd)


def _captures(folder: str, count: int, size: int, config: Config, *, guarded: bool) -> float:
    source = tempfile.mkdtemp(dir=folder)
    piece = os.urandom(_MIB)
    for number in range(count):
        with open(os.path.join(source, str(number)), "wb") as file:
            for _ in range(size // _MIB):
                file.write(piece)
    took = []
    for number in range(_TIMES):
        target = os.path.join(folder, f"{os.path.basename(source)}-{number}")
        before = time.perf_counter()
        captured = capture.capture(source, target, "auto", config, lease_budget=count if guarded else 0)
        took.append(time.perf_counter() - before)
        captured.drop(target)
    shutil.rmtree(source)
    return statistics.median(took)


# -- the store ---------------------------------------------------------------------------------------------------------


def _store(spec: StoreSpec, config: Config) -> Iterator[Finding]:
    yield Finding("store", GOOD, f"{spec.root} ({spec.kind})")
    yield from run_with_store(spec, config, _tried)


async def _tried(store: Store) -> list[Finding]:
    found: list[Finding] = []
    folder = f"{layout.ROOT}/doctor/{secrets.token_hex(8)}"
    key, copy = f"{folder}/object", f"{folder}/copy"
    data = os.urandom(_SENT_BYTES)

    async def timed(what: str, call: Callable[[], Awaitable[Any]]) -> float:
        before = time.monotonic()
        try:
            await call()
        except CheckpointError as error:
            found.append(Finding(what, BAD, str(error)))
            return 0.0
        return time.monotonic() - before

    try:
        if small := await timed("write", lambda: store.put_bytes(key, b"async-ckpt")):
            found.append(Finding("write", GOOD, f"a small object in {format_seconds(small)}"))
        else:
            return found
        if large := await timed("write", lambda: store.put_bytes(key, data)):
            rate = len(data) / large / 1e6
            found.append(
                Finding(
                    "write",
                    GOOD,
                    f"{format_bytes(len(data))} in {format_seconds(large)}, {rate:.0f} MB/s in one request",
                )
            )
        if seconds := await timed("read", lambda: store.get_bytes(key)):
            found.append(Finding("read", GOOD, f"{format_bytes(len(data))} in {format_seconds(seconds)}"))
        found.append(await _conditions(store, f"{folder}/condition"))
        found.append(await _copies(store, key, copy, len(data)))
        found.append(await _clock(store))
        if store.notice:
            found.append(Finding("store", NOTE, store.notice))
    finally:
        for name in (key, copy, f"{folder}/condition"):
            with contextlib.suppress(CheckpointError):
                await store.delete(name)
    removed = [entry.key async for entry in store.list(folder)]
    text = (
        f"cannot remove objects: {', '.join(removed)} stay. Retention and gc will not work"
        if removed
        else "objects can be removed"
    )
    found.append(Finding("remove", NOTE if removed else GOOD, text))
    return found


async def _conditions(store: Store, key: str) -> Finding:
    first = await store.put_if(key, b"one", None)
    second = await store.put_if(key, b"two", None)
    if store.capabilities.conditional_put and first and not second:
        return Finding("conditional writes", GOOD, "the store keeps its word")
    return Finding(
        "conditional writes", NOTE, "not kept: of two writers at once the last one counts, also for latest"
    )  # fmt: skip


async def _clock(store: Store) -> Finding:
    before = time.time()
    try:
        there = await store_time(store)
    except CheckpointError as error:
        return Finding("clock", NOTE, f"{error.what}, so it is not known whether this machine's clock is right")
    # Stores tell whole seconds.
    skew = max(before - 1 - there, there - time.time(), 0.0)
    if skew < _SKEW_S:
        return Finding("clock", GOOD, f"within {format_seconds(1 + skew)} of the store's")
    return Finding(
        "clock", NOTE, f"{format_seconds(skew)} apart from the store's. S3 refuses requests from 15 min on"
    )  # fmt: skip


async def _copies(store: Store, key: str, copy: str, size: int) -> Finding:
    lost = "what comes again is sent again"
    if not store.capabilities.copy:
        return Finding("copies", NOTE, f"the store cannot copy objects: {lost}")
    try:
        await store.copy(key, copy, size)
    except CheckpointError as error:
        return Finding("copies", NOTE, f"the store cannot copy objects ({error.what}): {lost}")
    return Finding("copies", GOOD, "what comes again is copied in the store, and not sent")
