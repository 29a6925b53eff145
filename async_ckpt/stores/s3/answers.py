"""What an answer means. Only this module decides whether a request has succeeded, and what a refusal asks for.

A proxy, a captive portal or a full disk behind a gateway may answer ``200`` to anything. So an answer counts as a
success only if it is what S3 promises for the operation: the status, an ETag, and the right document or no body.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Literal, NamedTuple

#: How many bytes of an error's answer are read, and how many characters of an answer that is not S3's are shown.
MAX_ERROR_BYTES = 64 << 10
_SHOWN = 200

_HIDDEN = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Answer(NamedTuple):
    """Status, headers (names in lower case), and the body: of an error, its beginning; ``document`` if it is XML."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    document: ElementTree.Element | None = None

    def text(self, name: str) -> str:
        """What the document says under a name; empty: nothing."""
        return _fields(self.document).get(name, "")

    def all(self, name: str) -> list[dict[str, str]]:
        """Every element of this name in the document: what is in it, by names."""
        root = self.document
        return [_fields(child) for child in (root if root is not None else ()) if _local(child.tag) == name]


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
    "GetObject": _Promise((200, 206), header="etag", element=None),
    "HeadObject": _Promise(header="etag", element=None),
    "DeleteObject": _Promise((200, 204)),
}


_REDIRECTS = (301, 302, 303, 307, 308)
#: The bucket is in another region, said without a redirect.
_ELSEWHERE = frozenset({
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect",
    "Redirect",
})  # fmt: skip
#: What a server says of a request that was signed for another region, where it names that in its message only.
_EXPECTING = re.compile(r"expecting '([a-z0-9-]+)'")
#: What other credentials may change; the last is what some stores say to any key that they do not know.
_CREDENTIALS = frozenset({
    "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurity", "NotSignedUp", "SignatureDoesNotMatch", "UnrecognizedClientException",
    "401", "AuthFailure", "AccessDenied",
})  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})
_PASSING = _EXPIRED | {
    "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "ConnectionError",
    "DependencyTimeoutException", "IncompleteBody", "InternalError", "InternalFailure", "KMSInternalException",
    "KeyUnavailableException", "LimitExceededException", "OperationAborted", "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled", "RequestThrottledException",
    "RequestTimeTooSkewed", "RequestTimeout", "RequestTimeoutException", "ServerBusy", "ServiceUnavailable", "SlowDown",
    "SlowDownRead", "SlowDownWrite", "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequests",
    "TooManyRequestsException", "TransactionInProgressException", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_SLOW = re.compile("SlowDown|Throttl|TooManyRequests|RequestLimitExceeded|ServerBusy|BandwidthLimitExceeded")


class Refusal(Exception):
    """An answer that says that a request was not done.

    Parameters
    ----------
    answer : Answer
        The answer.
    code, message : str
        In S3's words; the status stands for a code that is missing.
    """

    #: Whether it may be done another time; None: the code says it.
    may_pass: bool | None = None

    def __init__(self, answer: Answer, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.answer, self.status, self.code, self.message = answer, answer.status, code, message

    def header(self, name: str) -> str:
        """A header of the answer; empty: it is missing."""
        return self.answer.headers.get(name, "")

    @property
    def is_s3(self) -> bool:
        """Whether it is S3 that refuses: in a document with a code, or with its headers."""
        return self.code != str(self.status) or is_amazons(self.answer.headers)

    @property
    def is_page(self) -> bool:
        """Whether it is something for people to look at, and so none of S3's."""
        return "html" in self.header("content-type")

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object."""
        return self.code in _MISSING

    @property
    def is_expired(self) -> bool:
        """Whether credentials, or a signature, were good for some time only."""
        return self.code in _EXPIRED

    @property
    def passes(self) -> bool:
        """Whether it may be done another time."""
        if self.may_pass is not None:
            return self.may_pass
        plain = self.code.rpartition(".")[2]  # KMS.ThrottlingException
        return plain in _PASSING or self.status in (408, 425, 429) or (self.status >= 500 and self.status != 501)

    @property
    def asks_to_slow_down(self) -> bool:
        """Whether the store has more requests than it likes."""
        return bool(_SLOW.search(self.code)) or self.status in (429, 503)

    @property
    def remedy(self) -> Literal["move", "clock", "renew", ""]:
        """What makes it worth sending the request again: to where the bucket is, with the store's time, or signed with
        other credentials.
        """
        named = bool(self.header("x-amz-bucket-region")) and self.code in ("400", "BadRequest")
        if self.status in _REDIRECTS or self.code in _ELSEWHERE or named:
            return "move"
        if self.code == "RequestTimeTooSkewed" and self.clock_offset_s is not None:
            return "clock"
        return "renew" if self.code in _CREDENTIALS else ""

    @property
    def region(self) -> str:
        """The region that it names as the bucket's; empty: none."""
        said = self.header("x-amz-bucket-region") or self.answer.text("Region")
        match = _EXPECTING.search(self.message)
        return said or (match[1] if match else "")

    @property
    def endpoint(self) -> str:
        """The host that it names as the bucket's; empty: none."""
        return self.answer.text("Endpoint")

    @property
    def pause_s(self) -> float:
        """For how many seconds the store asks us to stay away; 0: it does not say."""
        value = self.header("retry-after")
        if value.isdecimal():
            return float(value)
        return max(_timestamp(value) - time.time(), 0.0) if value else 0.0

    @property
    def clock_offset_s(self) -> float | None:
        """By how many seconds the store's clock is ahead of ours; None: it does not say."""
        said = _timestamp(self.header("date"))
        return said - time.time() if said else None


class NotS3(Refusal):
    """An answer that no S3 gives, whatever its status: from something in between, or from something else altogether."""

    def __init__(self, answer: Answer, why: str = "", code: str = "NotS3") -> None:
        words = first_words(answer.body)
        begins = "; it begins with: " if why else ": "
        message = f"HTTP {answer.status}" + (f", but {why}" if why else "") + (f"{begins}{words}" if words else "")
        super().__init__(answer, code, message)

    @property
    def is_s3(self) -> bool:
        return False


def check(operation: str, answer: Answer) -> Answer:
    """Return an answer, with its document, where it says that the operation was done, as S3 says it.

    Raises
    ------
    Refusal
        It says that it was not, in the store's words.
    NotS3
        It says neither; shows the answer's first words.
    """
    promise = _PROMISES[operation]
    body = answer.body.strip()
    answer = answer._replace(document=_document(body))
    root = answer.document
    name = _local(root.tag) if root is not None else ""
    # S3 says with status 200 as well that a copy or a completion has failed.
    if answer.status >= 300 or (name == "Error" and promise.element is not None):
        raise _refusal(operation, answer)
    if answer.status not in promise.statuses:
        raise NotS3(answer, "the status means nothing for this request")
    if promise.header and not answer.headers.get(promise.header):
        raise NotS3(answer, "it has no ETag")
    if promise.element == "" and body:
        raise NotS3(answer, "it has a body where S3 has none")
    if promise.element and (promise.root not in ("", name) or not answer.text(promise.element)):
        strange = NotS3(answer, f"it is no document with {promise.element}")
        if name.lower() not in ("", "html") or (not body and "x-amz-request-id" in answer.headers):
            strange.may_pass = False  # The store's own, which leaves out what S3 says.
        raise strange
    return answer


def _refusal(operation: str, answer: Answer) -> Refusal:
    """The error of an answer: S3's code and message, or where it is not S3's, its status and first words."""
    status = str(answer.status)
    code = answer.text("Code")
    if code not in ("", status):
        return Refusal(answer, code, answer.text("Message"))
    # A page for people, or an empty answer, does not come from S3: it does not even say that an object is missing. Only
    # an answer to HEAD never has a body.
    silent = operation != "HeadObject" and not is_amazons(answer.headers)
    client_fault = answer.status < 500 and answer.status not in (408, 425, 429)
    if client_fault and (silent or answer.body.strip()):
        return NotS3(answer, code=status)
    phrase = answer.text("Message") or http.client.responses.get(answer.status, "")
    return Refusal(answer, status, first_words(answer.body) or phrase)


def is_amazons(headers: Mapping[str, str]) -> bool:
    """Whether there are headers that only S3 gives."""
    return any(name.startswith("x-amz-") for name in headers)


def first_words(body: bytes, shown: int = _SHOWN) -> str:
    """What a person reads first in an answer that nobody expected, on one line of at most ``shown`` characters."""
    text = body[:MAX_ERROR_BYTES].decode("utf-8", "replace")
    words = " ".join(_HIDDEN.sub(" ", text).split()) or " ".join(text.split())
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return printable if len(printable) <= shown else f"{printable[:shown]}…"


def _fields(element: ElementTree.Element | None) -> dict[str, str]:
    """What is in an element, by names without their namespaces."""
    return {_local(child.tag): child.text or "" for child in element} if element is not None else {}


def _timestamp(text: str) -> float:
    """Seconds since 1970 of a date as HTTP has it; 0 where it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def _document(body: bytes) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(body) if body else None
    except ElementTree.ParseError:
        return None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
