"""Checkpoints that somebody with evil intent wrote, made from a seed, and a place to load them that notices harm."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from async_ckpt import layout, manifest
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError, IntegrityError, NotFound
from async_ckpt.layout import newest
from async_ckpt.stores import catalog
from async_ckpt.stores.base import ListedObject
from async_ckpt.stores.local import LocalStore
from async_ckpt.task import restore
from harness.hostile.tars import NAMES, Tars
from harness.tasks.task import TASK

KEY = TASK.key("mfchckpt", 0)
MANIFEST_KEY = layout.parse_key(KEY).manifest_key
METADATA_KEY = layout.parse_key(KEY).metadata_key
_CONFIG = Config(local_fsync=False)

#: No load takes so many seconds, on any machine.
_LIMIT_S = 10.0

_NUMBERS: tuple[Any, ...] = (
    0, 1, -1, True, False, 1.0, 0.5, -0.0, 2**31, 2**63, 2**64, 10**30, -(10**4000), float("nan"), float("inf"),
    float("-inf"), "1", "", None, [], {}, [1], 0o4755, 0o2777, 0o7777, 0o1000,
)  # fmt: skip
_DIGESTS: tuple[Any, ...] = (
    None, [], {}, "", "a", 0, [0], [0, 0], [True], [-1], [2**40], [1.5], ["x"], [None], [[0]], {"0": 0}, [0] * 1000,
)  # fmt: skip
_PATHS: tuple[Any, ...] = (
    "", ".", "..", "/", "a/", "./a", "a//b", "a/./b", "a/..", "../victim", "../../outside/victim", "a\0b", "\0",
    "\ud800", "\udcff", "a\ud800/b", "e\u0301", "\u202e", "\n", " ", "a" * 255, "a" * 256, "a/" * 100 + "a",
    "a/" * 1500 + "a", "a/" * 3000 + "a", 3, None, ["a"], {}, True, "{}/victim", "/{}/victim",
    ".async_ckpt-loading-00000000/x",
)  # fmt: skip
_TARGETS: tuple[Any, ...] = ("", "\0", "a\0b", "\ud800", "\udcff", "a" * 5000, None, 5, [], {}, True, "\n")
_KEYS: tuple[Any, ...] = (
    "", "/", "..", "../../etc", "/etc/passwd", f"{KEY}/..", f"{KEY}/../..", f"{KEY}\n", f"{KEY}\0", f" {KEY}",
    KEY.replace("/Flow/", "/../"), KEY.replace("/Flow/", "/./"), KEY.replace("/Flow/", "/\ud800/"),
    KEY.replace("/Flow/", "/a\0b/"), KEY.replace("/Flow/", f"/{'a' * 300}/"), KEY.replace(".0", f".{'9' * 5000}"),
    KEY.replace(".0", ".\u0663"), KEY.replace(".0", ".\u00b2"), KEY.replace(".0", ".-1"), KEY[:-1], KEY + "0" * 5000,
    KEY.replace("mfchckpt", "\udcff"), KEY.replace("mfchckpt", ".."), KEY.encode(), None, 3, [], {}, KEY.upper(),
)  # fmt: skip

Load = Callable[[], Awaitable[object]]


class TookTooLong(BaseException):
    """A load does not end. Not an ``Exception``: nobody shall handle it."""


class Harmed(Exception):
    """Something outside of the destination changed: what comes after this load cannot be told from it."""


class LyingStore(LocalStore):
    """A store that has objects with names no file can have, beside its files."""

    def __init__(self, root: str) -> None:
        super().__init__(root, _CONFIG)
        self.lies: dict[str, bytes] = {}

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        for key, data in self.lies.items():
            yield ListedObject(key, len(data))
        async for entry in super().list(prefix, beginning):
            yield entry

    async def get_file(self, key: str, destination: str, **options: Any) -> int:
        if key not in self.lies:
            return await super().get_file(key, destination, **options)
        try:
            with open(destination, "wb") as file:
                return file.write(self.lies[key])
        except OSError as error:
            raise IntegrityError("Cannot write", where=destination) from error


class Place:
    """A destination with something in it, and others around it that nothing may touch, below ``base``."""

    def __init__(self, base: Path) -> None:
        self.base, self.outside, self.destination = base, base / "outside", base / "in/here"
        self.store = LyingStore(str(base / "store"))
        for folder in (self.destination, self.outside / "folder", base / "store"):
            folder.mkdir(parents=True)
        for path in (base / "in/beside", self.outside / "victim", self.outside / "folder/victim", base / "victim"):
            path.write_text("untouched")
        self._furnish()
        self._around = self._look_around()

    def _furnish(self) -> None:
        _remove_all_in(self.destination)
        (self.destination / "mine").write_text("mine")
        (self.destination / "folder").mkdir()
        (self.destination / "folder/kept").write_text("kept")
        (self.destination / "link").symlink_to(self.outside)
        self._furnished = _look(self.destination)

    def put(self, key: str, data: bytes) -> None:
        """Make an object, where a file of that name can be."""
        path = os.path.join(self.store.root, key)
        with contextlib.suppress(OSError, ValueError, RecursionError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)

    def empty_store(self) -> None:
        self.store.lies.clear()
        _remove_all_in(Path(self.store.root))

    async def attempt(self, load: Load) -> tuple[bool, list[str]]:
        """Whether it was loaded, and what harm was done.

        Raises
        ------
        Harmed
            Harm to something outside of the destination.
        """
        harm, loaded = [], False
        try:
            with _time_limit():
                await load()
            loaded = True
        except CheckpointError:
            pass
        except Exception as error:
            harm.append(f"{type(error).__name__} at {_where(error)}")
        except TookTooLong as error:
            harm.append(f"a load does not end, at {_where(error)}")
        if self._look_around() != self._around:
            raise Harmed("something was written outside of the destination")
        found = _look(self.destination)
        if any("loading-" in name for name in found if ".async_ckpt-loading-00000000" not in name):
            harm.append("a temporary file or directory was left")
        elif not loaded and found != self._furnished:
            harm.append("a load that failed changed the destination")
        if any(stat.S_ISREG(mode) and mode & 0o6000 for mode, *_ in found.values()):
            harm.append("a file came that runs as somebody else (setuid or setgid)")
        if any(stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) for mode, *_ in found.values()):
            harm.append("something came that is neither a file nor a directory nor a link")
        if found != self._furnished:
            self._furnish()
        return loaded, harm

    def _look_around(self) -> dict[str, tuple[Any, ...]]:
        facts = {}
        for folder in (self.base, self.base / "in", self.outside, self.outside / "folder"):
            for entry in os.scandir(folder):
                status = entry.stat(follow_symlinks=False)
                dull = entry.name == "store" or (folder.name == "in" and entry.name == "here")
                facts[entry.path] = (status.st_ino, status.st_mode) if dull else (*_facts(status), status.st_mtime_ns)
        return facts


class Hostile:
    """Makes loads that must not do harm; what it makes depends on the random numbers alone."""

    def __init__(self, place: Place, random_: random.Random) -> None:
        self._place, self._random = place, random_
        self._tars = Tars(random_, str(place.outside))
        self.kinds: Counter[str] = Counter()

    def next(self) -> tuple[str, Load]:
        """The kind of the next one, and what loads it; the store holds what it needs."""
        kinds = {"manifest": 35, "tar": 35, "listing": 10, "reference": 10, "metadata": 10}
        (kind,) = self._random.choices(list(kinds), list(kinds.values()))
        self.kinds[kind] += 1
        self._place.empty_store()
        load: Load = getattr(self, f"_{kind}")()
        return kind, load

    # -- kinds -----------------------------------------------------------------------------------------------------

    def _manifest(self) -> Load:
        self._place.put(MANIFEST_KEY, self._spoiled(self._manifest_data()))
        return self._loading()

    def _tar(self) -> Load:
        data = self._tars.tar()
        self._place.put(KEY, data)
        if self._random.random() < 0.6:
            return self._loading(storage_format="tar", manifest=None)
        facts: Any = {"size": len(data), "crc32": [zlib.crc32(data)] if data else []}
        if self._random.random() < 0.4:
            facts[self._random.choice(("size", "crc32"))] = self._random.choice((*_NUMBERS, *_DIGESTS))
        if self._random.random() < 0.1:
            facts = self._random.choice((*_NUMBERS, "x"))
        self._place.put(MANIFEST_KEY, self._spoiled({**self._empty(), "tar": facts}))
        return self._loading(storage_format="tar")

    def _listing(self) -> Load:
        for _ in range(self._random.randrange(1, 5)):
            path = self._path()
            self._place.store.lies[f"{KEY}/{path}" if self._random.random() < 0.9 else str(path)] = b"bad"
        return self._loading(manifest=None)

    def _reference(self) -> Load:
        """Found by what a user passes on, which may be anything."""
        self._place.put(f"{KEY}/a", b"1")
        self._place.put(METADATA_KEY, self._spoiled(self._metadata_data()))
        reference: Any = KEY if self._random.random() < 0.3 else self._random.choice(_KEYS)
        if self._random.random() < 0.4:
            reference = self._metadata_data()
        place = self._place
        return lambda: restore.find_and_load(place.store, reference, str(place.destination), _CONFIG)

    def _metadata(self) -> Load:
        """Found by itself, as the newest of a task or a step."""
        task, place = TASK, self._place
        self._place.put(f"{KEY}/a", b"1")
        for folder in (task.task_folder, task.scope_folder):
            for name in (layout.LATEST, f"0.mfchckpt.{self._random.randrange(3)}.metadata"):
                self._place.put(f"{folder}/{name}", self._spoiled(self._metadata_data()))
        begun: Any = {"keys": [self._random.choice((KEY, *_KEYS))]}
        if self._random.random() < 0.2:
            begun = self._random.choice(({"keys": 5}, {"keys": {KEY: 1}}, [], 3, None, {"keys": [None]}))
        self._place.put(layout.begun_key(task.pathspec, 0), self._spoiled(begun))

        async def load() -> None:
            found: list[Any] = [await catalog.newest_of_task(place.store, task, _CONFIG)]
            found.append(await catalog.newest_of_step(place.store, task.scope_folder, _CONFIG))
            for folder in (task.task_folder, task.scope_folder):
                listed = await catalog.list_references(place.store, folder, _CONFIG)
                found += newest.newest_first(listed)[:1] + sorted(listed, key=layout.order)[-1:]
            found = [data for data in found if data is not None]
            if not found:
                raise NotFound("There is none")
            data = found[turn % len(found)]
            await restore.load_from_store(place.store, data, str(place.destination), _CONFIG)

        turn = self._random.randrange(60)
        return load

    # -- what they are made of -------------------------------------------------------------------------------------

    def _loading(self, **fields: Any) -> Load:
        reference = {"key": KEY, "storage_format": "files", "manifest": MANIFEST_KEY, **fields}
        place = self._place
        return lambda: restore.load_from_store(place.store, reference, str(place.destination), _CONFIG)

    def _empty(self) -> dict[str, Any]:
        return {"format": manifest.FORMAT, "files": [], "dirs": [], "links": []}

    def _manifest_data(self) -> Any:
        data = self._empty()
        data["files"] = [self._file() for _ in range(self._random.randrange(4))]
        data["dirs"] = [[self._path(), self._or(0o755, _NUMBERS)] for _ in range(self._random.randrange(3))]
        data["links"] = [[self._path(), self._target()] for _ in range(self._random.randrange(3))]
        if self._random.random() < 0.003:
            data["dirs"] = [
                ["/".join("l" * depth), 0o755] for depth in range(1, self._random.choice((400, 1100, 1900)))
            ]
        if self._random.random() < 0.1:
            data[self._random.choice(tuple(data))] = self._random.choice((*_NUMBERS, *_PATHS))
        return data

    def _file(self) -> Any:
        path, data = self._path(), self._random.randbytes(self._random.choice((0, 1, 40)))
        if isinstance(path, str) and not {"", ".", ".."} & set(path.split("/")) and self._random.random() < 0.95:
            self._place.put(f"{KEY}/{path}", data)
        size, mode = self._or(len(data), _NUMBERS), self._or(0o644, _NUMBERS)
        entry = {"path": path, "size": size, "mode": mode, "how": "copy"}
        entry["crc32"] = self._or([zlib.crc32(data)] if data else [], _DIGESTS)
        fate = self._random.random()
        if fate < 0.03:
            del entry[self._random.choice(tuple(entry))]
        elif fate < 0.06:
            entry[self._random.choice(("how", "ino", "offset", "surprise", ""))] = self._random.choice(_NUMBERS)
        return entry

    def _metadata_data(self) -> Any:
        data = {
            "key": self._or(KEY, _KEYS), "pathspec": TASK.pathspec, "attempt": self._or(0, _NUMBERS),
            "version_id": self._or(0, _NUMBERS), "storage_format": self._or("files", ("tar", "x", None, [])),
            "created_on": self._or("2026-01-01", _NUMBERS),
            "created_at": self._or("9999-12-31T23:59:59-12:00", _NUMBERS),
            "latest": self._or(True, _NUMBERS), "manifest": None, "name": "mfchckpt",
            "metadata": {}, "size": self._or(1, _NUMBERS),
        }  # fmt: skip
        fate = self._random.random()
        if fate < 0.1:
            del data[self._random.choice(tuple(data))]
        elif fate < 0.15:
            return self._random.choice((*_NUMBERS, *_PATHS))
        return data

    def _path(self) -> Any:
        if self._random.random() < 0.9:
            return self._random.choice(NAMES)
        return _put_in(self._random.choice(_PATHS), self._place.outside)

    def _target(self) -> Any:
        return self._tars.target() if self._random.random() < 0.9 else self._random.choice(_TARGETS)

    def _or(self, sane: Any, hostile: Sequence[Any]) -> Any:
        return sane if self._random.random() < 0.9 else self._random.choice(hostile)

    def _spoiled(self, data: Any) -> bytes:
        """As JSON; sometimes with a few bytes changed."""
        body = bytearray(json.dumps(data, default=repr).encode())
        fate = self._random.random()
        if fate < 0.04:
            for _ in range(self._random.randrange(1, 5)):
                body[self._random.randrange(len(body))] = self._random.randrange(256)
        elif fate < 0.05:
            del body[self._random.randrange(len(body)) :]
        elif fate < 0.055:
            return self._random.choice((b"[" * 100_000, b"9" * 5000, b'{"a":' * 990 + b"1" + b"}" * 990, b"\xff\xfe"))
        return bytes(body)


def _put_in(path: Any, outside: Path) -> Any:
    return path.replace("{}", str(outside)) if isinstance(path, str) else path


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    # There is one such clock in a process, and the limit of a test may run on it.
    others, begun = signal.signal(signal.SIGALRM, ring), time.monotonic()
    their_s, _ = signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    try:
        yield
    finally:
        left_s = max(their_s - (time.monotonic() - begun), 0.001) if their_s else 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, others)
        signal.setitimer(signal.ITIMER_REAL, left_s)


def _where(error: BaseException) -> str:
    """File and line in the library that an error went through last."""
    trace, found = error.__traceback__, "?"
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "/async_ckpt/" in path and "/tests/" not in path:
            found = f"async_ckpt/{path.rpartition('/async_ckpt/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_ino, status.st_size


def _look(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What is in a folder, by path, however deep."""
    found: dict[str, tuple[int, int, int]] = {}
    todo = [str(folder)]
    while todo:
        for entry in os.scandir(todo.pop()):
            found[entry.path] = _facts(entry.stat(follow_symlinks=False))
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
    return found


def _remove_all_in(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for entry in list(os.scandir(folder)):
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            continue
        try:
            shutil.rmtree(entry.path)
        except RecursionError:
            subprocess.run(["rm", "-rf", "--", entry.path], check=True)
