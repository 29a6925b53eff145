"""S3 in memory: what a request does to a bucket, and how it is answered. No sockets; ``fault_server`` has those.

Small, but right in what the store relies on: signatures, regions and clocks are checked, uploads have parts, ETags are
MD5 sums (or are not, as with KMS), conditions are kept (or are not, as with those who do not know them).
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import itertools
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import cached_property
from xml.sax.saxutils import escape

from harness.s3.servers import ACCESS_KEY, BUCKET, SECRET_KEY

#: How far apart clocks may be, in seconds.
MAX_SKEW_S = 15 * 60


@dataclass
class Request:
    """A request, its header names in lower case. Whoever reads the body sets it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @cached_property
    def query(self) -> dict[str, str]:
        query = urllib.parse.urlsplit(self.target).query
        return dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    @cached_property
    def path(self) -> list[str]:
        """Bucket and key, as far as there are any."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.target).path)
        return [part for part in path.removeprefix("/").split("/", 1) if part]

    @property
    def key(self) -> str:
        return self.path[1] if len(self.path) > 1 else ""

    @cached_property
    def operation(self) -> str:
        """S3's name of it; empty: none that is known here."""
        method, query, headers = self.method, self.query, self.headers
        if not self.key:
            if method == "GET":
                plain = "ListMultipartUploads" if "uploads" in query else "ListObjectsV2"
                return "GetBucketLocation" if "location" in query else plain
            return {"HEAD": "HeadBucket", "PUT": "CreateBucket"}.get(method, "")
        copies = "x-amz-copy-source" in headers
        if "uploads" in query:
            return "CreateMultipartUpload" if method == "POST" else ""
        if "uploadId" in query:
            part = "UploadPartCopy" if copies else "UploadPart"
            return {
                "PUT": part, "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload", "GET": "ListParts"
            }.get(method, "")  # fmt: skip
        put = "CopyObject" if copies else "PutObject"
        return {"PUT": put, "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, "")


@dataclass
class Answer:
    """What is answered; ``raw`` is how it goes over the wire."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = "Because"

    def head(self, *, length: int | None = None, version: str = "1.1") -> bytes:
        fields = dict(self.headers)
        if self.status >= 200 and self.status != 204:
            fields.setdefault("Content-Length", str(len(self.body) if length is None else length))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        return f"HTTP/{version} {self.status} {self.reason}\r\n{lines}\r\n".encode("latin-1")


@dataclass
class Object:
    data: bytes
    etag: str

    @cached_property
    def md5(self) -> bytes:
        return hashlib.md5(self.data, usedforsecurity=False).digest()

    @cached_property
    def crc32(self) -> str:
        return base64.b64encode(zlib.crc32(self.data).to_bytes(4, "big")).decode()


@dataclass
class Upload:
    key: str
    parts: dict[int, Object] = field(default_factory=dict)


class Refusal(Exception):
    """A request is refused with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def error(status: int, code: str, message: str = "Refused", headers: Mapping[str, str] = {}, **more: str) -> Answer:
    """An answer with S3's document of an error."""
    fields = {"Code": code, "Message": message, **more, "RequestId": "0123456789ABCDEF"}
    text = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{text}</Error>'.encode()
    return Answer(status, body, {"Content-Type": "application/xml", **headers}, code)


def document(root: str, content: str) -> Answer:
    """An answer with one of S3's documents."""
    name = f'{root} xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{content}</{root}>'.encode()
    return Answer(200, body, {"Content-Type": "application/xml"}, "OK")


class MemoryS3:
    """One bucket and what is in it. What it should be like is set on it; ``handle`` may be called by many threads."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, Upload] = {}
        #: Where the bucket is: requests that are signed for another place are refused with ``elsewhere``.
        self.region = "us-east-1"
        self.elsewhere = error(301, "PermanentRedirect", "The bucket is in another region")
        #: By how much its clock is ahead, in seconds.
        self.clock_ahead_s = 0.0
        #: As with KMS: ETags that are no MD5 sums.
        self.encrypts = False
        #: What it makes of conditions of a PUT: ``honoured``, ``ignored``, ``unquoted`` (If-Match only without quotes).
        self.conditions = "honoured"
        self.page_size = 1000
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def put(self, key: str, data: bytes) -> Object:
        """Have an object there."""
        with self._lock:
            made = self.objects[key] = self._object(data)
        return made

    def handle(self, request: Request) -> Answer:
        """Do what the request asks for."""
        try:
            self._authorize(request)
            with self._lock:
                answer = getattr(self, f"_{request.operation}", self._unknown)(request)
        except Refusal as refusal:
            answer = refusal.answer
        return self.dated(answer)

    def dated(self, answer: Answer) -> Answer:
        """The answer with what every one of S3's has."""
        answer.headers.setdefault("Date", formatdate(time.time() + self.clock_ahead_s, usegmt=True))
        answer.headers.setdefault("Server", "MemoryS3")
        return answer

    def check_clock(self, request: Request) -> None:
        """Raises Refusal where the request was signed at another time than this server's."""
        sent = calendar.timegm(time.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
        now = time.time() + self.clock_ahead_s
        if abs(now - sent) > MAX_SKEW_S:
            message = "The difference between the request time and the current time is too large."
            server = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
            raise Refusal(error(403, "RequestTimeTooSkewed", message, ServerTime=server, RequestTime="then"))

    def check_region(self, request: Request) -> None:
        """Raises Refusal where the request was signed for another region than the bucket's."""
        if _scope(request)[2] != self.region:
            raise Refusal(replace(self.elsewhere, headers=dict(self.elsewhere.headers)))

    def _authorize(self, request: Request) -> None:
        if not request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 "):
            raise Refusal(error(403, "AccessDenied", "Anonymous access is forbidden"))
        if _scope(request)[0] != ACCESS_KEY:
            raise Refusal(error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist"))
        self.check_clock(request)
        self.check_region(request)
        if not hmac.compare_digest(signature(request), _authorization(request)["Signature"]):
            raise Refusal(error(403, "SignatureDoesNotMatch", "The signature does not match"))
        said = request.headers["x-amz-content-sha256"]
        if len(said) == 64 and hashlib.sha256(request.body).hexdigest() != said:
            raise Refusal(error(400, "XAmzContentSHA256Mismatch", "The body is not the one that was signed"))
        if request.path and request.path[0] != BUCKET:
            raise Refusal(error(404, "NoSuchBucket", "The specified bucket does not exist", BucketName=request.path[0]))

    def _object(self, data: bytes) -> Object:
        made = Object(data, f'"{next(self._numbers):032d}"')
        if not self.encrypts:
            made.etag = f'"{made.md5.hex()}"'
        return made

    def _stored(self, request: Request) -> Object:
        """The body, checked against what the request says of it."""
        made = self._object(request.body)
        if "content-md5" in request.headers and base64.b64decode(request.headers["content-md5"]) != made.md5:
            raise Refusal(error(400, "BadDigest", "The Content-MD5 you specified did not match"))
        if "x-amz-checksum-crc32" in request.headers and request.headers["x-amz-checksum-crc32"] != made.crc32:
            raise Refusal(error(400, "BadDigest", "The CRC32 you specified did not match"))
        return made

    def _find(self, key: str) -> Object:
        if key not in self.objects:
            raise Refusal(error(404, "NoSuchKey", "The specified key does not exist.", Key=key))
        return self.objects[key]

    def _upload(self, request: Request) -> Upload:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or upload.key != request.key:
            raise Refusal(error(404, "NoSuchUpload", "The specified upload does not exist."))
        return upload

    def _unknown(self, request: Request) -> Answer:
        return error(501, "NotImplemented", f"{request.method} {request.target}")

    def _HeadBucket(self, _: Request) -> Answer:
        return Answer(200, b"", {"x-amz-bucket-region": self.region}, "OK")

    def _GetBucketLocation(self, _: Request) -> Answer:
        return document("LocationConstraint", self.region.replace("us-east-1", ""))

    def _PutObject(self, request: Request) -> Answer:
        made, known = self._stored(request), self.objects.get(request.key)
        match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
        if self.conditions != "ignored":
            if match is not None and known is None:
                raise Refusal(error(404, "NoSuchKey", "The specified key does not exist."))
            known_tag = known.etag if known else ""
            same = match == (_bare(known_tag) if self.conditions == "unquoted" else known_tag)
            if (match is not None and not same) or (none_match == "*" and known is not None):
                raise Refusal(error(412, "PreconditionFailed", "At least one of the pre-conditions did not hold"))
        self.objects[request.key] = made
        headers = {"ETag": made.etag}
        if "x-amz-checksum-crc32" in request.headers:
            headers["x-amz-checksum-crc32"] = made.crc32
        return Answer(200, b"", headers, "OK")

    def _GetObject(self, request: Request) -> Answer:
        found = self._find(request.key)
        headers = {"ETag": found.etag, "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        span = request.headers.get("range")
        if span is None:
            return Answer(200, found.data, headers, "OK")
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, end, size = int(first), min(int(last or len(found.data)), len(found.data) - 1), len(found.data)
        if start >= size:
            raise Refusal(error(416, "InvalidRange", "The requested range is not satisfiable"))
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return Answer(206, found.data[start : end + 1], headers, "Partial Content")

    def _HeadObject(self, request: Request) -> Answer:
        return self._GetObject(request)

    def _DeleteObject(self, request: Request) -> Answer:
        self.objects.pop(request.key, None)
        return Answer(204, b"", {}, "No Content")

    def _CreateMultipartUpload(self, request: Request) -> Answer:
        name = f"upload-{next(self._numbers)}"
        self.uploads[name] = Upload(request.key)
        text = f"<Bucket>{BUCKET}</Bucket><Key>{escape(request.key)}</Key><UploadId>{name}</UploadId>"
        return document("InitiateMultipartUploadResult", text)

    def _UploadPart(self, request: Request) -> Answer:
        upload, made = self._upload(request), self._stored(request)
        upload.parts[int(request.query["partNumber"])] = made
        headers = {"ETag": made.etag}
        if "x-amz-checksum-crc32" in request.headers:
            headers["x-amz-checksum-crc32"] = made.crc32
        return Answer(200, b"", headers, "OK")

    def _ListParts(self, request: Request) -> Answer:
        parts = sorted(self._upload(request).parts.items())[: int(request.query.get("max-parts", 1000))]
        text = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part.etag)}</ETag><Size>{len(part.data)}</Size></Part>"
            for number, part in parts
        )
        name = escape(request.query["uploadId"])
        return document("ListPartsResult", f"<UploadId>{name}</UploadId><IsTruncated>false</IsTruncated>{text}")

    def _CompleteMultipartUpload(self, request: Request) -> Answer:
        upload, parts, last = self._upload(request), [], 0
        for part in ElementTree.fromstring(request.body).findall("{*}Part"):
            number = int(part.findtext("{*}PartNumber", "0"))
            stored = upload.parts.get(number)
            if stored is None or _bare(stored.etag) != _bare(part.findtext("{*}ETag", "")):
                raise Refusal(error(400, "InvalidPart", "One or more of the specified parts could not be found."))
            if part.findtext("{*}ChecksumCRC32", stored.crc32) != stored.crc32:
                raise Refusal(error(400, "InvalidPart", "One or more of the specified checksums is another."))
            if number <= last:
                raise Refusal(error(400, "InvalidPartOrder", "The list of parts was not in ascending order."))
            parts.append(stored)
            last = number
        digests = b"".join(part.md5 for part in parts)
        etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'
        if self.encrypts:
            etag = f'"{next(self._numbers):032d}-{len(parts)}"'
        self.objects[request.key] = Object(b"".join(part.data for part in parts), etag)
        del self.uploads[request.query["uploadId"]]
        return document("CompleteMultipartUploadResult", f"<Key>{escape(request.key)}</Key><ETag>{escape(etag)}</ETag>")

    def _AbortMultipartUpload(self, request: Request) -> Answer:
        self._upload(request)
        del self.uploads[request.query["uploadId"]]
        return Answer(204, b"", {}, "No Content")

    def _ListMultipartUploads(self, _: Request) -> Answer:
        text = "".join(
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{name}</UploadId></Upload>"
            for name, upload in self.uploads.items()
        )
        return document("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{text}")

    def _origin(self, request: Request) -> Object:
        source = urllib.parse.unquote(request.headers["x-amz-copy-source"]).removeprefix("/")
        found = self._find(source.partition("/")[2])
        if request.headers.get("x-amz-copy-source-if-match", found.etag) != found.etag:
            raise Refusal(error(412, "PreconditionFailed", "The source is another"))
        span = request.headers.get("x-amz-copy-source-range")
        if span is None:
            return found
        first, _, last = span.removeprefix("bytes=").partition("-")
        return self._object(found.data[int(first) : int(last) + 1])

    def _CopyObject(self, request: Request) -> Answer:
        made = self.objects[request.key] = self._object(self._origin(request).data)
        return document("CopyObjectResult", f"<ETag>{escape(made.etag)}</ETag>")

    def _UploadPartCopy(self, request: Request) -> Answer:
        upload, made = self._upload(request), self._origin(request)
        upload.parts[int(request.query["partNumber"])] = made
        return document("CopyPartResult", f"<ETag>{escape(made.etag)}</ETag>")

    def _ListObjectsV2(self, request: Request) -> Answer:
        query = request.query
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "").removeprefix("after ")
        size = min(int(query.get("max-keys", 1000)), self.page_size)
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return self.listing(keys[:size], f"after {keys[size - 1]}" if len(keys) > size else None, query)

    def listing(self, keys: list[str], token: str | None, query: Mapping[str, str], *, truncated: str = "") -> Answer:
        """A page of a listing: these keys, and how to go on."""
        encode = urllib.parse.quote if query.get("encoding-type") == "url" else str
        text = "".join(
            f"<Contents><Key>{escape(encode(key))}</Key><ETag>{escape(self.objects[key].etag)}</ETag>"
            f"<Size>{len(self.objects[key].data)}</Size></Contents>"
            for key in keys
        )
        if "encoding-type" in query:
            text += f"<EncodingType>{query['encoding-type']}</EncodingType>"
        if token is not None:
            text += f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
        truncated = truncated or ("true" if token is not None else "false")
        return document("ListBucketResult", f"<Name>{BUCKET}</Name><IsTruncated>{truncated}</IsTruncated>{text}")


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _authorization(request: Request) -> dict[str, str]:
    text = request.headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ")
    return dict(item.strip().split("=", 1) for item in text.split(","))


def _scope(request: Request) -> list[str]:
    """Access key, day, region, service."""
    return _authorization(request)["Credential"].split("/")


def signature(request: Request) -> str:
    """The signature that the request should have, computed from what came over the wire."""
    said = _authorization(request)
    url = urllib.parse.urlsplit(request.target)
    pairs = (item.partition("=") for item in url.query.split("&") if item)
    query = "&".join(f"{name}={value}" for name, _, value in sorted(pairs))
    names = said["SignedHeaders"].split(";")
    headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in names)
    canonical = "\n".join(
        [request.method, url.path, query, headers, said["SignedHeaders"], request.headers["x-amz-content-sha256"]]
    )
    _, day, region, service, _ = _scope(request)
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{day}/{region}/{service}/aws4_request\n{hashed}"
    key = f"AWS4{SECRET_KEY}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()
