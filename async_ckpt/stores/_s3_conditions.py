"""Writes that depend on what is there, and whether a store keeps its word about them.

Stores ignore conditions (rclone), refuse to hear of them (400, 405, 501), or compare tags only without their quotes
(Ceph). So both directions are asked, with the first such write there is: the right tag has to be accepted, and a wrong
one refused. (Not with an object made for asking: in a bucket that keeps every version, or forbids to delete, each task
would leave one behind for ever.)
"""

from __future__ import annotations

from collections.abc import Mapping

from ._s3_answers import NotS3, Refusal, code_of
from ._s3_body import Bytes
from ._s3_engine import Engine
from ._s3_objects import Objects
from .base import no_progress

#: Answers to one whose condition does not hold: nothing there, somebody writes in this moment, something else there.
_NOT_AS_EXPECTED = (404, 409, 412)
#: Answers of a store that knows no conditions, with any code but those that have another reason.
_NOT_KNOWN = (400, 405, 501)
#: The ETag of no object.
_NO_TAG = f'"{"0" * 32}"'


class Conditions:
    """Conditional writes of small objects.

    Parameters
    ----------
    engine, objects : Engine, Objects
        What sends them.
    """

    def __init__(self, engine: Engine, objects: Objects) -> None:
        self._engine, self._objects = engine, objects
        #: Whether the store keeps its word; None: not known yet.
        self.kept: bool | None = None
        self._quoted = True

    async def put(self, key: str, data: bytes, tag: str | None) -> bool:
        """See ``Store.put_if``."""
        if self.kept is False or tag == "":
            return await self._plainly(key, data)
        written = await self._try(key, data, tag)
        if written is None:
            return await self._plainly(key, data)
        if self.kept is None and not written:
            return await self._doubt(key, data, tag)
        if self.kept is None:
            # A store that ignores conditions has written as well. It does so again, and nothing changes.
            self.kept = await self._try(key, data, _NO_TAG) is False
        return written

    async def _doubt(self, key: str, data: bytes, tag: str | None) -> bool:
        """The condition did not hold, says a store of which nothing is known: is that so?"""
        with self._engine.mapping("read", key):
            try:
                now = (await self._objects.head(key))[0].headers["etag"]
            except Refusal as error:
                if code_of(error)[1] != 404:
                    raise
                now = None
        if now != tag:
            return False
        if tag is not None:
            self._quoted = False
            if await self._try(key, data, tag):
                self.kept = await self._try(key, data, _NO_TAG) is False
                return True
        return await self._plainly(key, data)

    async def _plainly(self, key: str, data: bytes) -> bool:
        """Write in any case."""
        self.kept = False
        with self._engine.mapping("write", key):
            await self._put(key, data, {})
        return True

    async def _put(self, key: str, data: bytes, condition: Mapping[str, str]) -> None:
        await self._objects.put(key, Bytes(key, data), 0, len(data), no_progress, condition=condition, small=True)

    async def _try(self, key: str, data: bytes, tag: str | None) -> bool | None:
        """Write on a condition. False: it does not hold; None: the store knows no conditions."""
        value = tag if self._quoted or tag is None else tag.strip('"')
        condition = {"if-none-match": "*"} if value is None else {"if-match": value}
        with self._engine.mapping("write", key):
            try:
                await self._put(key, data, condition)
            except Refusal as error:
                status = code_of(error)[1]
                if isinstance(error, NotS3) or status not in (*_NOT_AS_EXPECTED, *_NOT_KNOWN):
                    raise
                return False if status in _NOT_AS_EXPECTED else None
        return True
