"""Rows of the table: answers that do not come, break off, lie, or refuse."""

from __future__ import annotations

from collections.abc import Callable

from harness.s3.fault_cells import EITHER, TCP, TLS, Fault, Refused, World
from harness.s3.fault_rows import (
    ALL,
    BROKEN,
    CONDITIONAL,
    FEW,
    NOT_S3,
    READS,
    STORES,
    THREE,
    TIME,
    WITH_BODY,
    WRITES,
    any_request,
    both,
    refused,
)
from harness.s3.fault_server import Turn
from harness.s3.faults import (
    NOT_FOUND_PAGE,
    PLAIN_PAGE,
    body_not_taken,
    changed,
    close,
    damaged,
    done_but,
    dripping_body,
    dripping_head,
    dripping_informational,
    drop,
    early,
    half_body,
    half_head,
    hang,
    html,
    instead,
    internal_error,
    lost,
    reset,
    reset_later,
    stored_nothing,
    unanswered,
    upload_without_id,
    white_space_then,
)
from harness.s3.memory_s3 import Answer, error

# -- silence, and what breaks off --------------------------------------------------------------------------------------

SILENCE = [
    *both("never answers", unanswered(hang), TIME, always=("put", "part", "get", "list"), waits=1,
           seen="marin-community/marin#6719"),
    *both("takes no body", body_not_taken, TIME, calls=("stream", "part"), waits=1),
    *both("head stops", half_head(hang), TIME, always=THREE, waits=1),
    *both("body stops", half_body(hang), TIME, calls=(*WITH_BODY, "put", "part"), always=("get", "list"), waits=1),
    *both("chunked body stops", half_body(hang, chunked=True), TIME, calls=("get", "file", "ranged", "list",
          "complete"),
           always=("get", "list"), waits=1),
    *both("head drips", dripping_head, TIME, calls=("put", "part", "get", "list", "complete"), always=THREE, waits=1,
           lingers=True),
    *both("body drips", dripping_body, TIME, calls=("get", "file", "ranged", "list", "copy"), always=("get", "list"),
           waits=1),
    # The standard library's client takes all but 100 for the answer.
    *both("102 Processing for ever", dripping_informational, TIME, calls=("put", "get", "complete"), always=("put",),
           waits=1, fallback_words=f"{TIME}|interim"),
    *both("closes before the answer", unanswered(drop), BROKEN, seen="aio-libs/aiohttp#850"),
    *both("resets before the answer", unanswered(reset), BROKEN, seen="peak/s5cmd#234"),
    # A DELETE has no more to say than its status, which was heard.
    *both("closes in the head", half_head(drop), ".", unless={"delete": EITHER}),
    *both("resets in the head", half_head(reset), ".", always=("put", "get", "list")),
    *both("closes in the body", half_body(drop), BROKEN, calls=WITH_BODY, always=("get", "file", "list"),
           seen="aws/aws-sdk-go#4510"),
    *both("closes in the body, with close_notify", half_body(close), BROKEN, calls=WITH_BODY, over=(TLS,),
           always=("get", "list")),
    *both("resets in the body", half_body(reset), BROKEN, calls=WITH_BODY, always=("get", "list")),
    *both("closes a chunked body", half_body(drop, chunked=True), BROKEN, calls=("get", "file", "ranged", "list",
          "complete"),
           always=("get", "list")),
]  # fmt: skip

# -- done, but who knows -----------------------------------------------------------------------------------------------


def _encrypts(world: World) -> None:
    world.s3.encrypts = True


GONE = error(404, "NoSuchUpload", "The specified upload does not exist.")


def _abort_and_say_so(turn: Turn) -> None:
    turn.read_body()
    turn.s3.uploads.clear()
    turn.send(error(404, "NoSuchUpload", "The specified upload does not exist."))


LOST = [
    Fault("answer lost: silence", lost(hang), 1, ALL, waits=1, seen="earth-mover/icechunk#2099"),
    Fault("answer lost: closed", lost(drop), 1, ALL, seen="aws/aws-sdk-java-v2#6580"),
    Fault("answer lost: reset", lost(reset), 1, ALL),
    Fault("answer lost, ETags are no MD5", lost(drop), 1, WRITES, prepare=_encrypts),
    Fault("answer slower than the limit, ETags are no MD5", lost(hang), 1, ("complete", "copy"), waits=1,
          prepare=_encrypts),
    Fault("done, and answered 500", done_but(error(500, "InternalError")), 1, (*WRITES, *CONDITIONAL, "delete"),
          seen="aws/aws-sdk-java#538"),
    Fault("done, and answered NoSuchUpload", done_but(GONE), 1, ("complete",), seen="chimera-nas/chimera#489"),
    Fault("done, and answered NoSuchUpload, ETags are no MD5", done_but(GONE), 1, ("complete",), prepare=_encrypts,
          seen="peak/s5cmd#450"),
    Fault("done, and answered NoSuchKey", done_but(error(404, "NoSuchKey")), 1, ("complete",), EITHER,
          seen="minio/minio#4727"),
    Fault("the upload is gone", _abort_and_say_so, 1, ("part", "complete"), seen="aws/aws-cli#987"),
    Fault("parts are gone", instead(error(400, "InvalidPart")), 1, ("complete",), EITHER),
]  # fmt: skip

# -- refused before the body was taken ---------------------------------------------------------------------------------

DENIED = error(403, "AccessDenied", "Access Denied")
SLOW_DOWN = error(503, "SlowDown", "Please reduce your request rate.")
_SENDING = ("put", "stream", "part")

#: urllib3 does not read while it sends, and over TLS what came meanwhile is lost when sending fails.
_UNHEARD = f"SSL|took no more|{TIME}"

_ENDS = (("reset at once", reset, 0), ("reset", reset_later, 0), ("closed", close, 0), ("silence", hang, 1))

EARLY = [
    *(
        Fault(f"AccessDenied early, then {name}", early(DENIED, end), None, _SENDING, Refused("AccessDenied",
              lasting=True),
              waits=waits, fallback=Refused(f"AccessDenied|{_UNHEARD}"), seen="s3tools/s3cmd#778")
        for name, end, waits in _ENDS
    ),
    *(
        row
        for name, end, waits in _ENDS
        for row in both(f"SlowDown early, then {name}", early(SLOW_DOWN, end), "SlowDown", calls=_SENDING,
                         always=("stream", "part"), waits=waits,
                         fallback_words=f"SlowDown|{_UNHEARD}")
    ),
]  # fmt: skip

# -- success that is none ----------------------------------------------------------------------------------------------


def _drop_header(name: str) -> Callable[[Answer], None]:
    return lambda answer: answer.headers.__setitem__(name, "")


def no_tag(answer: Answer) -> None:
    answer.headers["ETag"] = ""
    before, _, rest = answer.body.partition(b"<ETag>")
    answer.body = before + rest.partition(b"</ETag>")[2] if rest else answer.body


def _blank_tag(answer: Answer) -> None:
    before, _, rest = answer.body.partition(b"<ETag>")
    answer.body = before + b"<ETag></ETag>" + rest.partition(b"</ETag>")[2] if rest else answer.body


def _other_checksum(answer: Answer) -> None:
    answer.headers["x-amz-checksum-crc32"] = "AAAAAA=="


def cut_document(answer: Answer) -> None:
    answer.body = answer.body[: len(answer.body) * 2 // 3]


#: The object is there, and found when it is looked for.
_LOOKED_AT = {"complete": EITHER}

NOT_DONE = [
    *both("200 with an <Error>", instead(error(200, "InternalError", "We encountered an internal error.")),
           "InternalError|ETag", calls=(*WRITES, *CONDITIONAL, "list", "delete"), always=(*WRITES, "delete"),
           seen="apache/arrow-rs-object-store#122"),
    *refused("200 with an <Error> for a GET", instead(error(200, "InternalError", "We encountered an internal error.")),
              "InternalError|ETag", READS),
    *refused("200 with a page to log in", instead(html(200)), NOT_S3, ALL, seen="s3tools/s3cmd#730"),
    Fault("200 with a page to log in, between good answers", instead(html(200)), 1, ALL, warm=1),
    *refused("200 with nothing", instead(Answer(200, reason="OK")), NOT_S3, (*WRITES, *READS, "list", "put if",
             "create")),
    *refused("200 without ETag", changed(no_tag), "ETag", (*STORES, "complete", "copy"), unless=_LOOKED_AT,
             seen="minio/minio#4397"),
    *refused("200 with an empty ETag", changed(_blank_tag), "ETag", ("complete", "copy"), unless=_LOOKED_AT,
             seen="minio/minio#4397"),
    Fault("read without ETag", changed(no_tag), None, ("head", *READS), EITHER),
    *(
        row
        for status in (201, 202, 203, 204, 206, 299)
        for row in refused(f"{status} and nothing was done", stored_nothing(status), str(status),
                            (*STORES, "complete", "copy", *CONDITIONAL) if status in (204, 299) else ("put", "part"))
    ),
    *refused("299 for a DELETE", stored_nothing(299), "299", ("delete",)),
    *both("stored damaged, as its checksum says", damaged, "checksum|CRC", calls=STORES),
    Fault("a checksum of something else with what is read", changed(_other_checksum), None, READS,
          seen="boto/botocore#3346"),
    *refused("an upload without an id", instead(upload_without_id()), "upload.?id", ("begin",)),
    *refused("a document that is cut off", changed(cut_document), NOT_S3 + "|pars|XML", ("begin", "complete", "copy",
             "list"),
             unless=_LOOKED_AT),
    Fault("white space while it works", white_space_then(Turn.answer, 1.2), None, ("complete", "copy"),
          seen="kitware-resonant/django-s3-file-field#209"),
    *both("white space, then an <Error>", white_space_then(internal_error, 0.3), "InternalError",
           calls=("complete", "copy"), always=("complete", "copy")),
    Fault("white space for ever", white_space_then(internal_error, 600.0), None, ("complete", "copy"), Refused(TIME),
          waits=3),
]  # fmt: skip

# -- refusals ----------------------------------------------------------------------------------------------------------

_PASSING = {
    "500 with XML": (error(500, "InternalError", "We encountered an internal error."), "InternalError|500"),
    "500 with HTML": (html(500), "500"),
    "500 with nothing": (Answer(500), "500"),
    "502 with HTML": (html(502), "502"),
    "502 with nothing": (Answer(502), "502"),
    "503 with XML": (SLOW_DOWN, "SlowDown|503"),
    "503 with HTML": (html(503), "503"),
    "503 with nothing": (Answer(503), "503"),
    "504 with HTML": (html(504), "504"),
    "520 with HTML": (html(520), "520"),
    "429 with XML": (error(429, "TooManyRequestsException"), "TooManyRequests|429"),
    "429 with nothing": (Answer(429), "429"),
    "429 with HTML": (html(429), "429"),
    "408 with HTML": (html(408), "408"),
    "400 RequestTimeout": (error(400, "RequestTimeout", "Your socket connection was idle"), "RequestTimeout|400"),
    "400 IncompleteBody": (error(400, "IncompleteBody"), "IncompleteBody|400"),
    "400 BadDigest": (error(400, "BadDigest"), "BadDigest|400"),
    "400 ThrottlingException": (error(400, "ThrottlingException", "Rate exceeded"), "ThrottlingException|400"),
    "400 KMS.ThrottlingException": (error(400, "KMS.ThrottlingException", "You have exceeded the rate"), "KMS|400"),
    "400 ExpiredToken": (error(400, "ExpiredToken", "The provided token has expired."), "ExpiredToken|400"),
    "403 RequestTimeTooSkewed": (error(403, "RequestTimeTooSkewed"), "RequestTimeTooSkewed|403"),
    "409 OperationAborted": (error(409, "OperationAborted"), "OperationAborted|409"),
}
#: Those that are tried with every call, and those where the code, which an answer to a HEAD has not, decides.
_WITH_ALL = ("500 with XML", "503 with HTML")
_BY_CODE = ("403 RequestTimeTooSkewed", "409 OperationAborted")


def _calls_of(name: str) -> tuple[str, ...]:
    calls = ALL if name in _WITH_ALL else ("put", "part", "get", "list", "delete")
    return calls if name in _BY_CODE else (*calls, *({"head"} - set(calls)))


_LASTING = {
    "403 AccessDenied": (DENIED, "AccessDenied|403", FEW),
    "403 with HTML": (html(403), "403", FEW),
    "403 QuotaExceeded": (error(403, "QuotaExceeded", "Bucket quota"), "QuotaExceeded", STORES),
    "403 SignatureDoesNotMatch": (error(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch.*secret", THREE),
    "403 InvalidAccessKeyId": (error(403, "InvalidAccessKeyId"), "InvalidAccessKeyId.*key", THREE),
    "404 NoSuchBucket": (error(404, "NoSuchBucket", "The bucket does not exist"), "NoSuchBucket", THREE),
    "400 with HTML": (html(400), "400", THREE),
    "405 with HTML": (html(405), "405", ("put", "part", "get", "list")),
    "411 with HTML": (html(411), "411", STORES),
    "413 with HTML": (html(413), "413", STORES),
    "417 with nothing": (Answer(417), "417", STORES),
    "501 NotImplemented": (error(501, "NotImplemented"), "NotImplemented|501", ("put", "part", "copy", "list")),
    "507 XMinioStorageFull": (error(507, "XMinioStorageFull", "Storage full"), "XMinioStorageFull", STORES),
    "304 with nothing": (Answer(304), "304", ("get", "head")),
    "416 for what is not too long": (error(416, "InvalidRange"), "InvalidRange|416", ("get", "ranged")),
}


def _deny_part_and_hang_abort(turn: Turn) -> None:
    if turn.request.operation == "AbortMultipartUpload":
        turn.connection.hang()
    if turn.request.operation == "UploadPart":
        turn.read_body()
        turn.send(error(403, "AccessDenied", "Access Denied"))
    else:
        turn.serve()


REFUSALS = [
    *(
        row
        for name, (answer, words) in _PASSING.items()
        for row in both(name, instead(answer), words, calls=_calls_of(name), always=THREE)
    ),
    *(row for name, (answer, words, calls) in _LASTING.items() for row in refused(name, instead(answer), words, calls)),
    Fault("403 AccessDenied is for good", instead(DENIED), None, THREE, Refused("AccessDenied", lasting=True)),
    Fault("404 with HTML is no missing object", instead(html(404, NOT_FOUND_PAGE)), None,
          ("get", "file", "ranged", "put", "part", "list", "delete"), Refused("404|not found")),
    Fault("503 with Retry-After", instead(error(503, "SlowDown", headers={"Retry-After": "1"})), 1, ("put", "get"),
          at_least_s=0.9),
    Fault("503 with Retry-After of a day", instead(error(503, "SlowDown", headers={"Retry-After": "86400"})), 1,
          ("put", "get"), at_least_s=0.9),
    Fault("503 with Retry-After of nonsense", instead(error(503, "SlowDown", headers={"Retry-After": "soon, ²"})), 1,
          ("put", "get")),
    Fault("an abort that never ends", _deny_part_and_hang_abort, None, ("part",),
          Refused("AccessDenied", lasting=True), waits=4, meant=any_request, tidies=False),
    Fault("400: plain HTTP to an HTTPS port", instead(html(400, PLAIN_PAGE, "Bad Request")), None, THREE,
          Refused("https"), over=(TCP,)),
]  # fmt: skip
