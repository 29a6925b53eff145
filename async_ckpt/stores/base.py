"""The contract of a store: objects under keys, written whole or not at all.

What every implementation promises, and ``tests/contract/store_suite.py`` holds it to:

- A key is a relative path of non-empty parts separated by ``/``, without ``.`` and ``..``. Every method refuses any
  other with ``check_key``, before it asks for anything.
- ``put_*`` is atomic (nobody reads half an object), replaces what was there, and may be called several times
  with the same bytes: it is idempotent, so a retry after an answer that was lost is safe.
- ``get_*``, ``size`` raise ``NotFound`` for a key that is not there; ``delete`` of such a key succeeds.
- A failed or cancelled call leaves nothing under the final key and releases what it holds (open parts, temporary
  files).
- Errors are ``TransientStoreError`` where trying again may help, ``StoreError`` where it will not. No error of the
  library underneath gets out. Implementations do not retry whole calls; ``RetryStore`` does.
- Calls may run concurrently in one event loop. A store belongs to the loop it was first used in.
"""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from ..config import CHUNK_BYTES
from ..errors import IntegrityError, NotFound, StoreError, UsageError

T = TypeVar("T")

#: Called with the number of bytes that were just transferred; never with a running total.
Progress = Callable[[int], None]


def no_progress(count: int) -> None:
    """The Progress of somebody who does not want to know."""


class Stored(NamedTuple):
    """What is known of content that is in the store.

    Parameters
    ----------
    crc32 : list of int
        CRC-32 of every ``CHUNK_BYTES`` in order (the last may be shorter; empty for no bytes).
    digests : tuple of str
        Digests of the same chunks, by which they are known again (``system/digests.py``); empty: there are none.
    etag : str
        Tells the object (or the part) from one that takes its place; empty: not known.
    """

    crc32: list[int]
    digests: tuple[str, ...] = ()
    etag: str = ""


class Place(NamedTuple):
    """Where the store has some bytes: in which object, of which ETag and size in bytes, and from which offset on."""

    key: str
    etag: str
    size: int
    offset: int


class Earlier(Protocol):
    """Knows what the store has of earlier checkpoints, so that it is copied there and not sent again. Asked from the
    event loop and from threads.
    """

    def find(self, digests: Sequence[str]) -> Place | None:
        """Where these chunks lie one after the other, in an object whose ETag is known."""

    def of(self, key: str) -> Stored | None:
        """What is known of an object that ``find`` has named."""

    def forget(self, key: str) -> None:
        """That object is gone, or cannot be copied."""

    def copied(self, count: int) -> None:
        """So many bytes were copied, and not sent; fewer than 0: copies that are of no use after all."""


@dataclass
class Multipart:
    """A multipart upload that was begun: all that a later try needs to go on with it.

    Parameters
    ----------
    upload : str
        The store's id of it.
    part_bytes : int
        Size of its parts but the last, in bytes.
    parts : dict
        What is in the store already, by number of the part (from 1).
    """

    upload: str
    part_bytes: int
    parts: dict[int, Stored] = field(default_factory=dict)


class PartsLog(Protocol):
    """Remembers what of one object a multipart upload has brought into the store, beyond the death of this process.

    A store that is handed one leaves the upload open when it is interrupted or fails in a way that may pass, and goes
    on with ``known`` at the next call. It is called from the event loop.
    """

    #: The upload that an earlier call began and did not end; None: begin a new one.
    known: Multipart | None

    def began(self, upload: str, part_bytes: int) -> None:
        """A new upload was begun; what was ``known`` is void."""

    def sent(self, number: int, part: Stored) -> None:
        """A part is in the store."""


class Content(Protocol):
    """Content of a known size that can be read at any offset, several times, by several readers at once."""

    @property
    def name(self) -> str:
        """What to call it in an error: usually its path."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def from_file(self, copy: Callable[[int], T | None]) -> T | None:
        """Hand out the descriptor of a file that has this content and nothing else, for stores that clone files or copy
        them inside the kernel.

        ``copy`` is called again if the file was replaced meanwhile: it begins anew each time. It returns None where it
        found too few bytes. Returns what it returned; None, without a call, if there is no such file.

        Raises
        ------
        IntegrityError
            The content is not what was captured any more (shorter, replaced).
        """

    def pread(self, count: int, offset: int) -> bytes:
        """Exactly ``min(count, size - offset)`` bytes at ``offset``.

        Raises
        ------
        IntegrityError
            The content is not what was captured any more (shorter, replaced).
        """


@dataclass(frozen=True)
class Capabilities:
    """What a store can do beyond the contract; asked, never guessed from a type."""

    #: ``put_if`` keeps its word.
    conditional_put: bool = False
    #: It keeps its word where nothing may be there: an object is made once, and never written over.
    create_only: bool = False
    #: ``copy`` works: one object becomes another without passing through this machine.
    copy: bool = False
    #: ``get_each`` is one call, and not one for each object.
    get_each: bool = False


@dataclass(frozen=True)
class ListedObject:
    """One object in a listing.

    Parameters
    ----------
    size : int
        In bytes.
    modified : float or None
        When it was written, in seconds since 1970 by the store's clock; None: not known.
    """

    key: str
    size: int
    modified: float | None = field(default=None, compare=False)


class OpenUpload(NamedTuple):
    """A multipart upload that was begun, and neither ended nor aborted.

    Parameters
    ----------
    upload : str
        The store's id of it.
    began : float
        When, in seconds since 1970 by the store's clock.
    """

    key: str
    upload: str
    began: float


@dataclass(frozen=True)
class Access:
    """How a bucket is opened that is not the datastore's, in the words of Metaflow's ``get_s3_client``. It may hold
    credentials: no part of it is ever printed or written down.
    """

    role_arn: str | None = None
    session_vars: Mapping[str, Any] | None = None
    client_params: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return "Access(...)"


@dataclass(frozen=True)
class StoreSpec:
    """How to open a store in another process: plain JSON, and never a credential.

    Parameters
    ----------
    kind : str
        One of ``stores.KINDS``: ``"local"``, or ``"metaflow-s3"``, which is opened as Metaflow's own S3 client is.
    root : str
        Absolute directory or ``s3://bucket/prefix`` under which the keys lie. Other kinds whose root is no directory
        begin it with their name, as in ``zip:///path``: a reference's ``url`` tells the kind by it.
    options : mapping
        JSON-able settings of that kind. For ``"metaflow-s3"``, ``access_from`` names the environment variable in which
        another process finds how to open it; or ``client_params`` are the parameters of the client, if none is secret.
    access : Access or None
        How this process opens it; for ``"metaflow-s3"``. It does not travel.
    """

    kind: str
    root: str
    options: Mapping[str, Any] = field(default_factory=dict)
    access: Access | None = field(default=None, repr=False, compare=False)

    @property
    def path_on_disk(self) -> str | None:
        """The directory or file of this machine that holds the store; None: it is elsewhere."""
        scheme, separator, path = self.root.partition("://")
        return (path if path.startswith("/") else None) if separator else scheme

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "root": self.root, "options": dict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoreSpec:
        return cls(str(data["kind"]), str(data["root"]), dict(data.get("options") or {}))


#: No metadata and no manifest is longer.
MAX_BYTES = 256 << 20


class TooLong(IntegrityError):
    """What should be a small object is not: something else has taken its name, and none of it was read. ``tag`` is what
    ``put_if`` wants to replace it.
    """

    tag: str | None = None


def too_long(where: str, size: str, tag: str) -> TooLong:
    """The error for an object of this size (``"12"``, ``"more than 12"``)."""
    error = TooLong(
        f"{where} has {size} bytes, and no metadata is so long", where=where,
        hint="Something else was put in its place; remove it, or load an earlier checkpoint",
    )  # fmt: skip
    error.tag = tag
    return error


class Store(abc.ABC):
    """See the module's docstring for the contract."""

    root: str
    capabilities: Capabilities = Capabilities()

    @property
    def notice(self) -> str:
        """What the user should be told, once, of how this store works here; usually nothing. It may be known only after
        the first call.
        """
        return ""

    def url(self, key: str) -> str:
        """The address a person can find the object under."""
        return f"{self.root.rstrip('/')}/{key}"

    def pace(self, bytes_per_s: float) -> bool:
        """Send content no faster than this from now on; 0: as fast as can be. It also holds for calls that are under
        way, at once. Metadata and what is read are not slowed down.

        Returns
        -------
        bool
            False: this store cannot.
        """
        return False

    @abc.abstractmethod
    async def put_content(
        self, key: str, content: Content, progress: Progress = no_progress, log: PartsLog | None = None,
        earlier: Earlier | None = None,
    ) -> Stored:  # fmt: skip
        """Write content under ``key``.

        ``log``: where the store uploads in parts, it goes on with those of an earlier call that are in the log.

        ``earlier``: what it knows need not be sent, where the store can copy; how that ends, the object is whole, and
        independent of all others.

        Returns
        -------
        Stored
            Computed from the bytes of the content.
        """

    async def copy(self, source_key: str, key: str, size: int, etag: str = "") -> str:
        """Make an object of ``size`` bytes the content of ``key`` as well, inside the store. Only where
        ``capabilities.copy`` is set. Returns the ETag of the copy; empty: not known.

        ``etag``: of the object that is meant; empty: whatever is there.

        Raises
        ------
        NotFound
            There is no ``source_key``.
        IntegrityError
            It has another size, or is not the one that is meant.
        StoreError
            This one cannot be copied; writing it anew may work.
        """
        raise StoreError(f"{self.root} cannot copy objects", where=self.url(source_key))

    @abc.abstractmethod
    async def put_bytes(self, key: str, data: bytes) -> None:
        """Write a small object (metadata, manifest)."""

    async def get_bytes(self, key: str) -> bytes:
        """Read a small object whole; raises as ``get_tagged``."""
        return (await self.get_tagged(key))[0]

    @abc.abstractmethod
    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        """A small object, and the tag of this content for ``put_if``; any text where the store has no such thing.

        Raises
        ------
        TooLong
            It has more than ``MAX_BYTES``.
        """

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write a small object where it is still what ``get_tagged`` read (None: where there is none).

        Returns
        -------
        bool
            False: it is not, and nothing was written. After a lost answer this may be said of one's own write.

        A store whose ``capabilities.conditional_put`` is False, or turns out to be by this call, writes in any case;
        without a tag, one whose ``create_only`` is False.
        """
        await self.put_bytes(key, data)
        return True

    @abc.abstractmethod
    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        """Read an object into a new file ``destination`` (its directory exists) and return its size in bytes.

        ``size`` and ``crc32`` (as ``put_content`` returned) are checked while reading where they are given. The file
        never shares its inode with the store. A failed call may leave a partial ``destination``: the caller's to
        remove.

        Raises
        ------
        IntegrityError
            Size or digest differ; names the key.
        StoreError
            ``destination`` cannot be written. It is never ``NotFound``, which would say that the object is missing.
        """

    @abc.abstractmethod
    async def size(self, key: str) -> int:
        """Size of an object in bytes."""

    @abc.abstractmethod
    def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        """All objects below the folder ``prefix`` (recursively), in no particular order; nothing where there is none.

        ``prefix`` is a key as above, without a trailing slash; ``a/b`` does not list ``a/bc``. ``beginning``: only
        those whose keys go on with this after the folder's slash.
        """

    async def get_each(self, keys: Sequence[str], in_flight: int) -> dict[str, bytes]:
        """Small objects by their keys, at most ``in_flight`` at a time. What is missing, or too long, is left out.

        Raises
        ------
        StoreError
            One of them cannot be read.
        """
        from ..system.concurrency import for_each  # Late: the agent imports this module, and waits for no store.

        found: dict[str, bytes] = {}

        async def get(key: str) -> None:
            with contextlib.suppress(NotFound, IntegrityError):
                found[key] = await self.get_bytes(key)

        await for_each(keys, in_flight, get)
        return found

    @abc.abstractmethod
    async def delete(self, key: str) -> None:
        """Remove one object; a missing one is no error."""

    async def open_uploads(self, prefix: str) -> AsyncIterator[OpenUpload]:
        """All multipart uploads of keys below the folder ``prefix`` that are open; none where there are no such
        uploads.
        """
        nothing: tuple[OpenUpload, ...] = ()
        for upload in nothing:
            yield upload

    async def abort(self, key: str, upload: str) -> None:
        """Give up a multipart upload that ``open_uploads`` has listed; one that is gone is no error."""
        raise StoreError(f"{self.root} has no multipart uploads", where=self.url(key))

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Release connections and threads; idempotent."""


class Wrapper(Store):
    """A store around another one, which does all the work. A subclass says in ``_around`` what it adds to every call.

    Parameters
    ----------
    store : Store
        The one inside; closed with this one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.root = store.root

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        """Await ``call(progress)``, which asks the store inside. Every method but ``list`` and ``aclose`` comes here.

        Parameters
        ----------
        operation : str
            The method's name.
        call : callable
            May be called several times.
        """
        return await call(progress)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # They may be found out by a call.
        return self._store.capabilities

    @property
    def notice(self) -> str:
        return self._store.notice

    def url(self, key: str) -> str:
        return self._store.url(key)

    def pace(self, bytes_per_s: float) -> bool:
        return self._store.pace(bytes_per_s)

    async def put_content(
        self, key: str, content: Content, progress: Progress = no_progress, log: PartsLog | None = None,
        earlier: Earlier | None = None,
    ) -> Stored:  # fmt: skip
        return await self._around(
            "put_content", lambda told: self._store.put_content(key, content, told, log, earlier), progress
        )

    async def copy(self, source_key: str, key: str, size: int, etag: str = "") -> str:
        return await self._around("copy", lambda _: self._store.copy(source_key, key, size, etag))

    async def put_bytes(self, key: str, data: bytes) -> None:
        await self._around("put_bytes", lambda _: self._store.put_bytes(key, data))

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        return await self._around("get_tagged", lambda _: self._store.get_tagged(key))

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        return await self._around("put_if", lambda _: self._store.put_if(key, data, tag))

    async def get_file(self, key: str, destination: str, *, progress: Progress = no_progress, **checks: Any) -> int:
        return await self._around(
            "get_file", lambda to: self._store.get_file(key, destination, progress=to, **checks), progress
        )

    async def size(self, key: str) -> int:
        return await self._around("size", lambda _: self._store.size(key))

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        async for entry in self._store.list(prefix, beginning):
            yield entry

    async def get_each(self, keys: Sequence[str], in_flight: int) -> dict[str, bytes]:
        if self.capabilities.get_each:
            return await self._around("get_each", lambda _: self._store.get_each(keys, in_flight))
        return await super().get_each(keys, in_flight)  # Each by itself comes to ``_around``.

    async def delete(self, key: str) -> None:
        await self._around("delete", lambda _: self._store.delete(key))

    async def open_uploads(self, prefix: str) -> AsyncIterator[OpenUpload]:
        async for upload in self._store.open_uploads(prefix):
            yield upload

    async def abort(self, key: str, upload: str) -> None:
        await self._around("abort", lambda _: self._store.abort(key, upload))

    async def aclose(self) -> None:
        await self._store.aclose()


def check_size(key: str, where: str, found: int, size: int | None, crc32: Sequence[int] | None) -> None:
    """Compare the size of an object with what ``get_file`` was told.

    Raises
    ------
    IntegrityError
        It is another one, or the digest is of another number of chunks.
    """
    if size is not None and found != size:
        raise IntegrityError(f"{key} has {found} bytes instead of {size}", where=where)
    if crc32 is not None and len(crc32) != -(-found // CHUNK_BYTES):
        raise IntegrityError(f"{key} has {found} bytes, which are not those of its digest", where=where)


def check_key(key: str) -> str:
    """Return ``key`` if it is well formed.

    Raises
    ------
    UsageError
        An empty or absolute key, an empty part, ``.``, ``..``, or a NUL.
    """
    parts = key.split("/")
    try:
        os.fsencode(key)  # Undecodable bytes of a file's name travel as surrogates.
    except UnicodeEncodeError:
        raise UsageError(f"The key {key!r} is no text", hint="Use a key as list() or save() returned it") from None
    if not key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise UsageError(
            f"The key {key!r} is not a relative path of plain parts",
            hint="Use a key as list() or save() returned it",
        )
    return key
