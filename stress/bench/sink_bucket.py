"""What the sink knows of S3: sizes of objects, multipart uploads, listings. No content but that of small objects."""

from __future__ import annotations

import base64
import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.sax.saxutils import escape, unescape

from .sink_http import Body, Request

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_DATE = "2020-01-01T00:00:00.000Z"
_HTTP_DATE = "Wed, 01 Jan 2020 00:00:00 GMT"
_PAGE = 1000


@dataclass(frozen=True)
class Object:
    """``content``: None where it was thrown away, and the pattern stands for it."""

    size: int
    etag: str
    content: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """``served``: the object, first byte and number of bytes to send instead of ``body``."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    served: tuple[Object, int, int] | None = None


class Refused(Exception):
    """An error of S3."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


Method = Callable[[Request, str, Body], Answer]


class Buckets:
    """All objects under ``bucket/key``. Any bucket exists.

    Parameters
    ----------
    verify : bool
        Refuse content that is not that of its ``x-amz-checksum-crc32``.
    """

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._objects: dict[str, Object] = {}
        self._uploads: dict[str, dict[int, Object]] = {}
        self._requests: Counter[str] = Counter()
        self._bytes = {"received": 0, "sent": 0}

    def stats(self) -> dict[str, object]:
        """Requests by kind, and bytes of bodies."""
        with self._lock:
            return {"requests": dict(self._requests), **self._bytes}

    def reset(self) -> None:
        with self._lock:
            self._requests.clear()
            self._bytes.update(received=0, sent=0)

    def answer(self, request: Request, body: Body) -> Answer:
        """What S3 would say."""
        name = request.path[1:]
        kind, method = self._kind(request, name)
        try:
            answer = method(request, name, body)
        except Refused as error:
            content = b"" if request.method == "HEAD" else _xml("Error", f"<Code>{error.code}</Code>", "")
            answer = Answer(error.status, {}, content)
        sent = answer.served[2] if answer.served and request.method == "GET" else len(answer.body)
        with self._lock:
            self._requests[kind] += 1
            self._bytes["received"] += body.size
            self._bytes["sent"] += sent
        return answer

    def _kind(self, request: Request, name: str) -> tuple[str, Method]:
        """The operation's name in S3's words, and the method for it."""
        method, query = request.method, request.query
        if "/" not in name.rstrip("/"):
            if method == "GET" and "location" in query:
                return "GetBucketLocation", self._location
            if method == "GET" and "uploads" in query:
                return "ListMultipartUploads", self._list_uploads
            if method == "GET":
                return "ListObjectsV2", self._list
            if method == "POST" and "delete" in query:
                return "DeleteObjects", self._delete_many
            return {"HEAD": "HeadBucket", "PUT": "CreateBucket"}.get(method, "Other"), self._nothing
        copies = "x-amz-copy-source" in request.headers
        if "uploadId" in query:
            return {
                "PUT": ("UploadPartCopy", self._copy_part) if copies else ("UploadPart", self._put_part),
                "POST": ("CompleteMultipartUpload", self._complete),
                "DELETE": ("AbortMultipartUpload", self._abort),
                "GET": ("ListParts", self._list_parts),
            }[method]
        return {
            "PUT": ("CopyObject", self._copy) if copies else ("PutObject", self._put),
            "POST": ("CreateMultipartUpload", self._create),
            "DELETE": ("DeleteObject", self._delete),
            "HEAD": ("HeadObject", self._get),
            "GET": ("GetObject", self._get),
        }[method]

    # -- objects -----------------------------------------------------------------------------------------------------

    def _put(self, request: Request, name: str, body: Body) -> Answer:
        if request.headers.get("if-none-match") == "*" and name in self._objects:
            raise Refused(412, "PreconditionFailed")
        stored, headers = self._received(request, body)
        self._objects[name] = stored
        return Answer(headers=headers)

    def _received(self, request: Request, body: Body) -> tuple[Object, dict[str, str]]:
        headers = {"ETag": self._etag()}
        given = request.headers.get("x-amz-checksum-crc32")
        if self._verify and given is not None:
            assert body.crc32 is not None
            found = base64.b64encode(body.crc32.to_bytes(4, "big")).decode()
            if found != given:
                raise Refused(400, "BadDigest")
            headers["x-amz-checksum-crc32"] = found
        return Object(body.size, headers["ETag"], body.content), headers

    def _get(self, request: Request, name: str, body: Body) -> Answer:
        stored = self._find(name)
        headers = {
            "ETag": stored.etag, "Last-Modified": _HTTP_DATE, "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if found is None:
            return Answer(200, headers, served=(stored, 0, stored.size))
        begin, last = _range(*found.groups(), stored.size)
        headers["Content-Range"] = f"bytes {begin}-{last}/{stored.size}"
        return Answer(206, headers, served=(stored, begin, last - begin + 1))

    def _delete(self, request: Request, name: str, body: Body) -> Answer:
        self._objects.pop(name, None)
        return Answer(204)

    def _copy(self, request: Request, name: str, body: Body) -> Answer:
        source = self._source(request)
        self._objects[name] = Object(source.size, self._etag(), source.content)
        return Answer(body=_xml("CopyObjectResult", self._copied(self._objects[name])))

    # -- multipart uploads -------------------------------------------------------------------------------------------

    def _create(self, request: Request, name: str, body: Body) -> Answer:
        upload = f"upload-{next(self._numbers)}"
        self._uploads[upload] = {}
        bucket, _, key = name.partition("/")
        content = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
        return Answer(body=_xml("InitiateMultipartUploadResult", content))

    def _put_part(self, request: Request, name: str, body: Body) -> Answer:
        parts = self._parts(request)
        stored, headers = self._received(request, body)
        parts[int(request.query["partNumber"])] = Object(stored.size, stored.etag)
        return Answer(headers=headers)

    def _copy_part(self, request: Request, name: str, body: Body) -> Answer:
        size = self._source(request).size
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("x-amz-copy-source-range", ""))
        if found is not None:
            begin, last = _range(*found.groups(), size)
            size = last - begin + 1
        part = self._parts(request)[int(request.query["partNumber"])] = Object(size, self._etag())
        return Answer(body=_xml("CopyPartResult", self._copied(part)))

    def _complete(self, request: Request, name: str, body: Body) -> Answer:
        parts = self._parts(request)
        listed = re.findall(rb"<PartNumber>\s*(\d+)\s*</PartNumber>", body.content or b"")
        if not listed or not parts.keys() >= set(map(int, listed)):
            raise Refused(400, "InvalidPart")
        size = sum(parts[int(number)].size for number in listed)
        self._objects[name] = stored = Object(size, f'{self._etag()[:-1]}-{len(listed)}"')
        self._uploads.pop(request.query["uploadId"], None)
        bucket, _, key = name.partition("/")
        content = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key><ETag>{escape(stored.etag)}</ETag>"
        return Answer(body=_xml("CompleteMultipartUploadResult", content))

    def _abort(self, request: Request, name: str, body: Body) -> Answer:
        self._uploads.pop(request.query["uploadId"], None)
        return Answer(204)

    def _list_parts(self, request: Request, name: str, body: Body) -> Answer:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part.etag)}</ETag><Size>{part.size}</Size></Part>"
            for number, part in sorted(self._parts(request).items())
        )
        upload = f"<UploadId>{escape(request.query['uploadId'])}</UploadId><IsTruncated>false</IsTruncated>"
        return Answer(body=_xml("ListPartsResult", upload + parts))

    # -- buckets -----------------------------------------------------------------------------------------------------

    def _list(self, request: Request, name: str, body: Body) -> Answer:
        query, bucket = request.query, name.strip("/")
        if not bucket:
            return Answer(body=_xml("ListAllMyBucketsResult", "<Buckets></Buckets>"))
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or query.get("marker") or ""
        limit = int(query.get("max-keys", _PAGE))
        start = f"{bucket}/{prefix}"
        items: dict[str, Object | None] = {}
        for path, stored in sorted(self._objects.copy().items()):
            if path.startswith(start):
                key = path[len(bucket) + 1 :]
                rest = key[len(prefix) :]
                folder = bool(delimiter) and delimiter in rest
                shown = prefix + rest.partition(delimiter)[0] + delimiter if folder else key
                if shown > after:
                    items.setdefault(shown, None if folder else stored)
        page = list(items.items())[:limit]
        more = len(items) > len(page)
        content = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>"
        content += f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            last = escape(page[-1][0])
            content += f"<NextContinuationToken>{last}</NextContinuationToken><NextMarker>{last}</NextMarker>"
        return Answer(body=_xml("ListBucketResult", content + "".join(_item(*item) for item in page)))

    def _delete_many(self, request: Request, name: str, body: Body) -> Answer:
        for key in re.findall(r"<Key>(.*?)</Key>", (body.content or b"").decode()):
            self._objects.pop(f"{name.strip('/')}/{unescape(key)}", None)
        return Answer(body=_xml("DeleteResult", ""))

    def _location(self, request: Request, name: str, body: Body) -> Answer:
        return Answer(body=_xml("LocationConstraint", ""))

    def _list_uploads(self, request: Request, name: str, body: Body) -> Answer:
        return Answer(body=_xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>"))

    def _nothing(self, request: Request, name: str, body: Body) -> Answer:
        return Answer()

    # -- parts of answers --------------------------------------------------------------------------------------------

    def _etag(self) -> str:
        # Nothing that could be taken for an MD5.
        return f'"sink-{next(self._numbers)}"'

    def _find(self, name: str) -> Object:
        try:
            return self._objects[name]
        except KeyError:
            raise Refused(404, "NoSuchKey") from None

    def _source(self, request: Request) -> Object:
        source = self._find(unquote(request.headers["x-amz-copy-source"].partition("?")[0]).lstrip("/"))
        if request.headers.get("x-amz-copy-source-if-match", source.etag) != source.etag:
            raise Refused(412, "PreconditionFailed")
        return source

    def _parts(self, request: Request) -> dict[int, Object]:
        try:
            return self._uploads[request.query["uploadId"]]
        except KeyError:
            raise Refused(404, "NoSuchUpload") from None

    def _copied(self, stored: Object) -> str:
        return f"<ETag>{escape(stored.etag)}</ETag><LastModified>{_DATE}</LastModified>"


def _item(key: str, stored: Object | None) -> str:
    if stored is None:
        return f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>"
    return (
        f"<Contents><Key>{escape(key)}</Key><Size>{stored.size}</Size><ETag>{escape(stored.etag)}</ETag>"
        f"<LastModified>{_DATE}</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _range(begin: str, last: str, size: int) -> tuple[int, int]:
    """First and last byte of what a client asks for; ``-n`` is the last n."""
    first = int(begin) if begin else max(size - int(last), 0)
    final = min(int(last), size - 1) if begin and last else size - 1
    if first > final:
        raise Refused(416, "InvalidRange")
    return first, final


def _xml(name: str, content: str, namespace: str = f' xmlns="{_NAMESPACE}"') -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}{namespace}>{content}</{name}>'.encode()
