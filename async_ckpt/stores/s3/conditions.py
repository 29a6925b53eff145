"""Writes that depend on what is there, and whether a store keeps its word about them.

Some stores ignore conditions (rclone), some refuse them (400, 405, 501), and some compare tags only without quotes
(Ceph). So the first write with a condition is used as a test: the right tag must be accepted, and a wrong one refused.
No object is made only for the test. In a bucket that keeps every version, or forbids deletion, it would stay for ever.
"""

from __future__ import annotations

from .answers import NotS3, Refusal, code_of
from .objects import Objects

#: Answers if the condition does not hold: nothing is there, somebody is writing, something else is there.
_NOT_AS_EXPECTED = (404, 409, 412)
#: Errors of stores that do not know conditions.
_NOT_KNOWN = frozenset({
    "400", "405", "501", "BadRequest", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NotImplemented",
    "NotSupported",
})  # fmt: skip
#: The ETag of no object.
_NO_TAG = f'"{"0" * 32}"'


class Conditions:
    """Conditional writes of small objects.

    Parameters
    ----------
    objects : Objects
        What sends them.
    """

    def __init__(self, objects: Objects) -> None:
        self._engine, self._objects = objects.engine, objects
        #: Whether the store keeps its word where nothing may be there, and where a tag has to fit; None: not known yet.
        self._creates: bool | None = None
        self._matches: bool | None = None
        self._quoted = True

    @property
    def kept(self) -> bool:
        """Whether the store keeps its word, as far as is known."""
        return self._creates is not False and self._matches is not False

    @property
    def creates(self) -> bool:
        """The same where nothing may be there."""
        return self._creates is not False

    async def put(self, key: str, data: bytes, tag: str | None) -> bool:
        """See ``Store.put_if``."""
        if tag is None:
            return await self._create(key, data)
        return await self._replace(key, data, tag)

    async def _create(self, key: str, data: bytes) -> bool:
        if self._creates is False:
            return await self._plainly(key, data)
        written = await self._try(key, data, None)
        if self._creates is None:
            if written:
                # A store that ignores conditions has written as well. It does so again, and nothing changes.
                self._creates = await self._try(key, data, None) is False
            elif written is False and await self._tag(key) is not None:
                self._creates = True
            else:
                self._creates = False
                return await self._plainly(key, data)
        return bool(written)

    async def _replace(self, key: str, data: bytes, tag: str) -> bool:
        if self._matches is False or not tag:
            return await self._plainly(key, data)
        written = await self._try(key, data, tag, quoted=self._quoted)
        if self._matches is not None:
            return bool(written)
        if written is False:
            if await self._tag(key) != tag:
                return False
            written = await self._try(key, data, tag, quoted=False)
            if written is False and await self._tag(key) != tag:
                return False
            self._quoted = not written
        # As above; and a store that refuses the right tag in either spelling knows no tags.
        self._matches = bool(written) and await self._try(key, data, _NO_TAG, quoted=self._quoted) is False
        return bool(written) or await self._plainly(key, data)

    async def _tag(self, key: str) -> str | None:
        """The tag of what is there; None: nothing."""
        with self._engine.mapping("read", key):
            try:
                return (await self._objects.head(key))[0].headers["etag"]
            except Refusal as error:
                if code_of(error)[1] != 404:
                    raise
        return None

    async def _plainly(self, key: str, data: bytes) -> bool:
        """Write in any case."""
        with self._engine.mapping("write", key):
            await self._objects.put_bytes(key, data)
        return True

    async def _try(self, key: str, data: bytes, tag: str | None, *, quoted: bool = True) -> bool | None:
        """Write on a condition. False: it does not hold; None: the store knows no conditions."""
        value = tag if quoted or tag is None else tag.strip('"')
        condition = {"if-none-match": "*"} if value is None else {"if-match": value}
        with self._engine.mapping("write", key):
            try:
                await self._objects.put_bytes(key, data, condition)
            except Refusal as error:
                code, status = code_of(error)
                if status in _NOT_AS_EXPECTED and not isinstance(error, NotS3):
                    return False
                if code not in _NOT_KNOWN or isinstance(error, NotS3):
                    raise
                return None
        return True
