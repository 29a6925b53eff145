"""What a store is asked for while its server misbehaves: which request is meant, and what must be true afterwards."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.stores.base import ListedObject, Store
from harness.s3.memory_s3 import MemoryS3, Object, Request
from harness.stores import content
from harness.stores.content import BytesContent, pattern

PREFIX = "root"
#: Contents: small; larger than all buffers on the way; of a large and a small part; to be replaced.
SMALL, STREAM, LARGE, OLD = pattern(1_000), pattern(6_000_000), pattern(CHUNK_BYTES + 70_001), b"old"
LISTED = [f"list/{number}/some file" for number in range(7)]
#: Pages of a listing have so many entries.
PAGE_SIZE = 3


@dataclass
class Scene:
    """One call, as it goes on.

    Parameters
    ----------
    store : Store
        What is asked.
    s3 : MemoryS3
        What is in the server.
    folder : str
        Where files may be written.
    """

    store: Store
    s3: MemoryS3
    folder: str
    #: Bytes that were reported, in all.
    moved: int = 0
    #: What the call returned.
    value: Any = field(default=None)

    def progress(self, count: int) -> None:
        self.moved += count

    @property
    def target(self) -> str:
        return os.path.join(self.folder, "target")


@dataclass(frozen=True)
class Call:
    """One call of a store.

    Parameters
    ----------
    hits : callable
        Whether a request is the one that is meant.
    run : callable
        Makes the call.
    wrong : callable
        After a success: what is not as the caller was told; empty where all is.
    heavy : bool
        It moves megabytes.
    """

    name: str
    hits: Callable[[Request], bool]
    run: Callable[[Scene], Awaitable[Any]]
    wrong: Callable[[Scene], str]
    heavy: bool = False


#: The digest of each content, computed once.
crcs_of = functools.cache(content.crcs_of)


@functools.cache
def _large() -> Object:
    s3 = MemoryS3()
    return s3.put("key", LARGE)


def furnish(s3: MemoryS3) -> None:
    """Put there what the calls want to find."""
    s3.page_size = PAGE_SIZE
    s3.put(f"{PREFIX}/small", SMALL)
    s3.objects[f"{PREFIX}/large"] = _large()
    for key in ("known", "doomed"):
        s3.put(f"{PREFIX}/{key}", OLD)
    for number, key in enumerate(LISTED):
        s3.put(f"{PREFIX}/{key}", b"x" * number)


def _operation(name: str) -> Callable[[Request], bool]:
    return lambda request: request.operation == name


def _not_there(key: str, data: bytes, moved: int | None = None) -> Callable[[Scene], str]:
    def wrong(scene: Scene) -> str:
        found = scene.s3.objects.get(f"{PREFIX}/{key}")
        if found is None:
            return "STORED, AND NOT THERE"
        if found.data != data:
            return f"STORED, AND SOMETHING ELSE IS THERE ({len(found.data)} bytes, {found.data[:20]!r})"
        return _miscounted(scene, moved)

    return wrong


def _miscounted(scene: Scene, moved: int | None) -> str:
    return f"{scene.moved} bytes reported" if moved is not None and scene.moved != moved else ""


def _differs(expected: Any, moved: int | None = None) -> Callable[[Scene], str]:
    def wrong(scene: Scene) -> str:
        if scene.value != expected:
            return f"READ WRONG: {str(scene.value)[:60]}"
        return _miscounted(scene, moved)

    return wrong


async def _put_content(scene: Scene, data: bytes) -> None:
    crcs = (await scene.store.put_content("new", BytesContent(data), scene.progress)).crc32
    assert crcs == crcs_of(data), "wrong digest"


async def _get_file(scene: Scene, key: str, data: bytes) -> bytes:
    """A file of which size and digest are known: one request where it is small."""
    size = await scene.store.get_file(key, scene.target, size=len(data), crc32=crcs_of(data), progress=scene.progress)
    assert size == len(data), "wrong size"
    with open(scene.target, "rb") as file:
        return file.read()


async def _list(scene: Scene) -> list[ListedObject]:
    return sorted([entry async for entry in scene.store.list("list")], key=lambda entry: entry.key)


async def _put_if(scene: Scene) -> bool:
    content, tag = await scene.store.get_tagged("known")
    assert content == OLD, "wrong content"
    return await scene.store.put_if("known", SMALL, tag)


async def _create(scene: Scene) -> bool:
    return await scene.store.put_if("new", SMALL, None)


def _not_written(key: str) -> Callable[[Scene], str]:
    """``False`` may be said of one's own write, but not where there is what should have been replaced."""
    there = _not_there(key, SMALL)

    def wrong(scene: Scene) -> str:
        return there(scene) if scene.value else ""

    return wrong


def _still_there(scene: Scene) -> str:
    return "DELETED, AND STILL THERE" if f"{PREFIX}/doomed" in scene.s3.objects else ""


def _is_ranged(request: Request) -> bool:
    return request.operation == "GetObject" and "range" in request.headers


def _is_large_part(request: Request) -> bool:
    return request.operation == "UploadPart" and request.query.get("partNumber") == "1"


def _is_put(condition: str) -> Callable[[Request], bool]:
    return lambda request: request.operation == "PutObject" and condition in request.headers


CALLS = {
    call.name: call
    for call in (
        Call(
            "put", _operation("PutObject"), lambda scene: scene.store.put_bytes("new", SMALL), _not_there("new", SMALL)
        ),
        Call(
            "stream", _operation("PutObject"), lambda scene: _put_content(scene, STREAM),
            _not_there("new", STREAM, len(STREAM)), heavy=True,
        ),
        *(
            Call(
                name, hits, lambda scene: _put_content(scene, LARGE), _not_there("new", LARGE, len(LARGE)), heavy=True
            )
            for name, hits in (
                ("begin", _operation("CreateMultipartUpload")), ("part", _is_large_part),
                ("complete", _operation("CompleteMultipartUpload")),
            )
        ),
        Call(
            "copy", _operation("CopyObject"), lambda scene: scene.store.copy("small", "new", len(SMALL)),
            _not_there("new", SMALL),
        ),
        Call("get", _operation("GetObject"), lambda scene: scene.store.get_bytes("small"), _differs(SMALL)),
        Call(
            "file", _operation("GetObject"), lambda scene: _get_file(scene, "small", SMALL),
            _differs(SMALL, len(SMALL)),
        ),
        Call(
            "ranged", _is_ranged, lambda scene: _get_file(scene, "large", LARGE), _differs(LARGE, len(LARGE)),
            heavy=True,
        ),
        Call("head", _operation("HeadObject"), lambda scene: scene.store.size("small"), _differs(len(SMALL))),
        Call(
            "list", _operation("ListObjectsV2"), _list,
            _differs([ListedObject(key, number) for number, key in enumerate(LISTED)]),
        ),
        Call("put if", _is_put("if-match"), _put_if, _not_written("known")),
        Call("create", _is_put("if-none-match"), _create, _not_written("new")),
        Call("delete", _operation("DeleteObject"), lambda scene: scene.store.delete("doomed"), _still_there),
    )
}  # fmt: skip
