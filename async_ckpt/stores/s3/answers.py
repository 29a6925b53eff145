"""What an answer means. Only this module decides whether a request has succeeded.

A proxy, a captive portal or a full disk behind a gateway may answer ``200`` to anything. So an answer counts as a
success only if it is what S3 promises for the operation: the status, an ETag, and the right document or no body.
"""

from __future__ import annotations

import email.utils
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import NamedTuple

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError, create_parser

#: How many bytes of an error's answer are read, and how many characters of an answer that is not S3's are shown.
MAX_ERROR_BYTES = 64 << 10
_SHOWN = 200

_HIDDEN = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Answer(NamedTuple):
    """Status, headers (names in lower case), and the body: of an error, its beginning."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class _Promise(NamedTuple):
    """What success looks like.

    Parameters
    ----------
    statuses : tuple of int
        Those that mean success.
    header : str
        One that has to be there; empty: none.
    element : str or None
        What a document in the body has to have in its root; empty: the body is empty; None: it is content.
    root : str
        What the document is called, where all servers call it so.
    """

    statuses: tuple[int, ...] = (200,)
    header: str = ""
    element: str | None = ""
    root: str = ""


#: Roots of documents have other names on some servers; what they are for is in them everywhere.
_PROMISES = {
    "PutObject": _Promise(header="etag"),
    "UploadPart": _Promise(header="etag"),
    "CreateMultipartUpload": _Promise(element="UploadId"),
    "CompleteMultipartUpload": _Promise(element="ETag"),
    "AbortMultipartUpload": _Promise((200, 204)),
    "CopyObject": _Promise(element="ETag"),
    "UploadPartCopy": _Promise(element="ETag"),
    "ListParts": _Promise(element="UploadId"),
    "ListObjectsV2": _Promise(element="Name", root="ListBucketResult"),
    "ListMultipartUploads": _Promise(element="Bucket", root="ListMultipartUploadsResult"),
    "GetObject": _Promise((200, 206), header="etag", element=None),
    "HeadObject": _Promise(header="etag", element=None),
    "DeleteObject": _Promise((200, 204)),
}


class Refusal(ClientError):  # type: ignore[misc]  # botocore has no types
    """An answer that says that a request was not done."""

    #: Whether it may be done another time; None: the code says it.
    may_pass: bool | None = None


class NotS3(Refusal):
    """An answer that no S3 gives, whatever its status: from something in between, or from something else altogether."""

    @classmethod
    def made(cls, operation: str, answer: Answer, why: str) -> NotS3:
        """From an answer and why it is none of S3's; shows its first words."""
        words = first_words(answer.body)
        message = f"HTTP {answer.status}, but {why}" + (f"; it begins with: {words}" if words else "")
        metadata = {"HTTPStatusCode": answer.status, "HTTPHeaders": dict(answer.headers)}
        return cls({"Error": {"Code": "NotS3", "Message": message}, "ResponseMetadata": metadata}, operation)


def check(operation: str, answer: Answer) -> None:
    """Return where the answer says that the operation was done, as S3 says it.

    Raises
    ------
    Refusal
        It says that it was not, in the store's words.
    NotS3
        It says neither; shows the answer's first words.
    """
    promise = _PROMISES[operation]
    if answer.status >= 300:
        raise refusal(operation, answer)
    if answer.status not in promise.statuses:
        raise NotS3.made(operation, answer, "the status means nothing for this request")
    body = answer.body.strip()
    root = _document(body) if body and promise.element is not None else None
    if root is not None and _local(root.tag) == "Error":
        raise refusal(operation, answer)  # S3 does this to copies and completions that fail late.
    if promise.header and not answer.headers.get(promise.header):
        raise NotS3.made(operation, answer, "it has no ETag")
    if promise.element is None or (not body and not promise.element):
        return
    if not promise.element:
        raise NotS3.made(operation, answer, "it has a body where S3 has none")
    named = root is not None and promise.root in ("", _local(root.tag))
    if root is None or not named or not any(_local(e.tag) == promise.element and e.text for e in root):
        strange = NotS3.made(operation, answer, f"it is no document with {promise.element}")
        page = root is None or _local(root.tag).lower() == "html"
        if not page or (not body and "x-amz-request-id" in answer.headers):
            strange.may_pass = False  # The store's own, which leaves out what S3 says.
        raise strange


def refusal(operation: str, answer: Answer) -> Refusal:
    """The error of an answer: S3's code and message, or where it is not S3's, its status and first words."""
    # The parser looks for an error only where the status is one.
    status = answer.status if answer.status >= 300 else 500
    parts = {"status_code": status, "headers": answer.headers, "body": answer.body}
    try:
        parsed = create_parser("rest-xml").parse(parts, None)
    except (ResponseParserError, AttributeError):  # The latter for XML of another kind.
        parsed = {}
    error = parsed.setdefault("Error", {})
    said = str(error.get("Code") or "")
    if not said or said == str(status):
        error.update(Code=str(answer.status), Message=first_words(answer.body) or error.get("Message", ""))
    metadata = parsed.setdefault("ResponseMetadata", {})
    metadata.update(HTTPStatusCode=answer.status, HTTPHeaders=dict(answer.headers))
    # A page for people, or an empty answer, does not come from S3: it does not even say that an object is missing. Only
    # an answer to HEAD never has a body.
    silent = operation != "HeadObject" and not is_amazons(answer.headers)
    client_fault = answer.status < 500 and answer.status not in (408, 425, 429)
    foreign = said in ("", str(answer.status)) and client_fault and (silent or bool(answer.body.strip()))
    return (NotS3 if foreign else Refusal)(parsed, operation)


def is_amazons(headers: Mapping[str, str]) -> bool:
    """Whether there are headers that only S3 gives."""
    return any(name.startswith("x-amz-") for name in headers)


def is_page(error: Refusal) -> bool:
    """Whether it is something for people to look at, and so none of S3's."""
    return "html" in header(error, "content-type")


def is_s3(error: Refusal) -> bool:
    """Whether it is S3 that refuses: in a document with a code, or with its headers."""
    code, status = code_of(error)
    named = code not in ("Unknown", str(status))
    return not isinstance(error, NotS3) and (named or is_amazons(error.response["ResponseMetadata"]["HTTPHeaders"]))


def first_words(body: bytes, shown: int = _SHOWN) -> str:
    """What a person reads first in an answer that nobody expected, on one line of at most ``shown`` characters."""
    text = body[:MAX_ERROR_BYTES].decode("utf-8", "replace")
    words = " ".join(_HIDDEN.sub(" ", text).split()) or " ".join(text.split())
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return printable if len(printable) <= shown else f"{printable[:shown]}…"


def error_field(error: Refusal, name: str) -> str:
    """What an error's document says under a name that only some errors have, as ``Region`` and ``Endpoint``."""
    return str(error.response.get("Error", {}).get(name) or "")


def header(error: Refusal, name: str) -> str:
    """A header of an answer that was an error."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    return str(headers.get(name) or "")


def code_of(error: ClientError) -> tuple[str, int]:
    """The code in the answer and its HTTP status; 0 where there is none."""
    code = str(error.response.get("Error", {}).get("Code") or "Unknown")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    return code, status or (int(code) if code.isdigit() else 0)


def retry_after_s(error: Refusal) -> float:
    """For how many seconds the store asks us to stay away; 0: it does not say."""
    value = header(error, "retry-after")
    if value.isdecimal():
        return float(value)
    return max(_timestamp(value) - time.time(), 0.0) if value else 0.0


def clock_offset_s(error: Refusal) -> float | None:
    """By how many seconds the store's clock is ahead of ours; None: it does not say."""
    said = _timestamp(header(error, "date"))
    return said - time.time() if said else None


def _timestamp(text: str) -> float:
    """Seconds since 1970 of a date as HTTP has it; 0 where it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def _document(body: bytes) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
