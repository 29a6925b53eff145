"""Rows of the table: ranges, listings, conditions, and where and when the bucket is."""

from __future__ import annotations

from collections.abc import Callable

from harness.s3.fault_calls import LARGE, OLD, PREFIX, Scene
from harness.s3.fault_cells import EITHER, TCP, TLS, Declined, Fault, Refused, World
from harness.s3.fault_rows import ALL, CONDITIONAL, THREE, both, refused
from harness.s3.fault_server import Turn
from harness.s3.faults import BOMB, PAGE, Inject, changed, everything, html, instead, page, page_without, rewritten
from harness.s3.memory_s3 import Answer, Request, error

# -- ranges ------------------------------------------------------------------------------------------------------------


def _piece(first: int, last: int, status: int = 206) -> Inject:
    """Whatever range was asked for, this one is answered."""

    def inject(turn: Turn) -> None:
        found = turn.s3.objects[turn.request.key]
        headers = {"ETag": found.etag}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(found.data)}"
        turn.send(Answer(status, found.data[first : last + 1], headers, "OK"))

    return inject


def _shifted(answer: Answer) -> None:
    answer.headers["Content-Range"] = f"bytes 1-{len(answer.body)}/{len(LARGE)}"


def _no_range(answer: Answer) -> None:
    answer.headers["Content-Range"] = ""


def _other_tag(answer: Answer) -> None:
    answer.headers["ETag"] = '"ffffffffffffffffffffffffffffffff"'


def _shorter(answer: Answer) -> None:
    answer.body = answer.body[:-10]


def _announce_less(head: bytes, body: bytes) -> bytes:
    return head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % (len(body) - 10)) + body


READING = [
    *refused("the whole instead of a range", _piece(0, len(LARGE) - 1, 200), "range|whole", ("ranged",)),
    *refused("the range is not named", changed(_no_range), "range|whole", ("ranged",)),
    *refused("another range is named", changed(_shifted), "range|bytes", ("ranged",)),
    *refused("another range", _piece(100, 199), "range|bytes", ("ranged",)),
    *both("another ETag", changed(_other_tag), "replaced", calls=("ranged",)),
    *refused("less than there is", changed(_shorter), "bytes|range|damaged|status line|HTTP", ("file", "ranged")),
    *refused("more than was announced", rewritten(_announce_less), "bytes|range|damaged|status line|HTTP", ("file",
             "ranged")),
]  # fmt: skip

# -- listings ----------------------------------------------------------------------------------------------------------


def _empty_page(turn: Turn) -> None:
    """No keys, but more to come."""
    turn.read_body()
    turn.send(turn.s3.listing([], "after ", turn.request.query))


LISTINGS = [
    Fault("the same token for ever", page("again"), None, ("list",), Refused("token|page"), seen="apache/druid#9097"),
    Fault("truncated without a token", page(None, "true"), None, ("list",), Refused("token|truncated"),
          seen="minio/minio-go#1704"),
    Fault("truncated with a blank token", page("", "true"), None, ("list",), Refused("token|truncated"),
          seen="pgbackrest/pgbackrest#1783"),
    Fault("truncated without a token, on the second page", page(None, "true"), None, ("list",),
          Refused("token|truncated"),
          first=2),
    Fault("the end with a blank token", page_without(lambda body: body.replace(
          b"<IsTruncated>false</IsTruncated>",
          b"<IsTruncated>false</IsTruncated><NextContinuationToken></NextContinuationToken>"
          )), None, ("list",), seen="pgbackrest/pgbackrest#1783"),
    Fault("a page without keys", _empty_page, 1, ("list",)),
    *both("500 on the second page", instead(error(500, "InternalError")), "InternalError", calls=("list",), first=2),
    Fault("another document", page_without(lambda body: body.replace(b"ListBucketResult", b"ListAllMyBucketsResult")),
          None,
          ("list",), Refused("document|ListBucketResult|result")),
    Fault("a size that is none", page_without(lambda body: body.replace(b"<Size>1</Size>", b"<Size>large</Size>")),
          None,
          ("list",), Refused(".")),
    Fault("no size", page_without(lambda body: body.replace(b"<Size>1</Size>", b"")), None, ("list",), Refused(".")),
    Fault("the prefix is ignored", everything, None, ("list",), EITHER),
    Fault("a document that unfolds", instead(Answer(200, BOMB, {"Content-Type": "application/xml"})), None, ("list",),
          Refused(".")),
]  # fmt: skip

# -- conditions --------------------------------------------------------------------------------------------------------


def _unquoted(world: World) -> None:
    world.s3.conditions = "unquoted"


def _ignores(world: World) -> None:
    world.s3.conditions = "ignored"


def _is_conditional(request: Request) -> bool:
    return request.operation == "PutObject" and ("if-match" in request.headers or "if-none-match" in request.headers)


def _given_up(_: World, scene: Scene) -> str:
    return "conditions still count as honoured" if scene.store.capabilities.conditional_put else ""


def _believed(_: World, scene: Scene) -> str:
    return "" if scene.store.capabilities.conditional_put else "conditions count as not honoured"


def _somebody_else(world: World) -> None:
    world.s3.put(f"{PREFIX}/new", OLD)


def _still_theirs(world: World, _: Scene) -> str:
    return "" if world.s3.objects[f"{PREFIX}/new"].data == OLD else "what somebody else wrote was replaced"


def _unfounded(turn: Turn) -> None:
    turn.read_body()
    turn.send(error(412, "PreconditionFailed", "At least one of the pre-conditions did not hold"))


CONDITIONS = [
    Fault("nothing is wrong", None, None, CONDITIONAL, then=_believed),
    Fault("somebody else was first", None, None, ("create",), Declined(), prepare=_somebody_else, then=_still_theirs),
    Fault("conditions are ignored", None, None, CONDITIONAL, prepare=_ignores, then=_given_up),
    *(
        Fault(f"conditions are refused with {status}", instead(error(status, code,
              "A header you provided is not implemented")),
              None, CONDITIONAL, meant=_is_conditional, then=_given_up)
        for status, code in ((400, "InvalidArgument"), (405, "MethodNotAllowed"), (501, "NotImplemented"))
    ),
    Fault("If-Match only without quotes", None, None, CONDITIONAL, prepare=_unquoted, seen="versity/versitygw#1710"),
    Fault("409 once", instead(error(409, "ConditionalRequestConflict")), 1, CONDITIONAL,
          seen="apache/arrow-rs-object-store#852"),
    Fault("409 for ever", instead(error(409, "ConditionalRequestConflict")), None, CONDITIONAL, EITHER,
          most_requests=20,
          meant=_is_conditional),
    Fault("412 for ever", _unfounded, None, CONDITIONAL, EITHER, most_requests=20, meant=_is_conditional),
    Fault("404 for what is there", instead(error(404, "NoSuchKey")), None, ("put if",), EITHER, most_requests=20,
          meant=_is_conditional),
]  # fmt: skip

# -- other places, other clocks ----------------------------------------------------------------------------------------


def _in_ireland(status: int, code: str, *, header: bool = True, **more: str) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        world.s3.region = "eu-west-1"
        headers = {"x-amz-bucket-region": "eu-west-1"} if header else {}
        world.s3.elsewhere = error(status, code, "The bucket is in this region: eu-west-1", headers, **more)

    return prepare


def _sent_on(status: int, *, region: str = "us-east-1", at: str = "") -> Callable[[World], None]:
    """Every request is sent on to the other server, or to where ``at`` says."""

    def prepare(world: World) -> None:
        def inject(turn: Turn) -> bool:
            target = at or world.elsewhere.url
            headers = {"Location": target + turn.request.target, "x-amz-bucket-region": region}
            turn.read_body()
            turn.send(error(status, "TemporaryRedirect", "Please re-send this request", headers))
            return True

        world.first = inject

    return prepare


def _sent_round(world: World) -> None:
    """Each server sends on to the other."""
    _sent_on(307)(world)

    def back(turn: Turn) -> bool:
        turn.read_body()
        headers = {"Location": world.server.url + turn.request.target, "x-amz-bucket-region": "us-east-1"}
        turn.send(error(307, "TemporaryRedirect", "Please re-send this request", headers))
        return True

    world.elsewhere.inject = back


def _to_log_in(world: World) -> None:
    def inject(turn: Turn) -> bool:
        turn.read_body()
        turn.send(Answer(302, PAGE, {"Location": f"{world.elsewhere.url}/login", "Content-Type": "text/html"}))
        return True

    world.first = inject

    def log_in(turn: Turn) -> bool:
        turn.send(html(200))
        return True

    world.elsewhere.inject = log_in


def _told_keys(world: World, _: Scene) -> str:
    return "a signature was sent to a stranger" if any(r.signed for r in world.elsewhere.records) else ""


def _to_plain(world: World) -> None:
    _sent_on(307, at=f"http://127.0.0.1:{world.elsewhere.port}")(world)


def _ahead(seconds: float) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        world.s3.clock_ahead_s = seconds

    return prepare


_AGAIN = instead(error(307, "TemporaryRedirect", "Again", {"x-amz-bucket-region": "eu-west-1"}))
_BY_BODY = {name: EITHER for name in ("head", "copy", "ranged")}
PLACES = [
    *(
        Fault(f"in another region, by {status}", None, None, ALL, prepare=_in_ireland(status, code), seen=seen)
        for status, code, seen in (
            (301, "PermanentRedirect", "brendanhay/amazonka#135"), (307, "TemporaryRedirect", "rusoto/rusoto#63"),
            (400, "AuthorizationHeaderMalformed", "aws/aws-sdk-js-v3#6572"),
        )
    ),
    Fault("in another region, said in the body only", None, None, ALL, unless=_BY_BODY,
          prepare=_in_ireland(400, "AuthorizationHeaderMalformed", header=False, Region="eu-west-1")),
    *(
        Fault(f"at another address, by {status}", None, None, ALL, prepare=_sent_on(status), seen="mozilla/sccache#265")
        for status in (301, 307, 308)
    ),
    Fault("sent round in circles", None, None, THREE, Refused("redirect|307|sends|elsewhere"), prepare=_sent_round,
          most_requests=60),
    Fault("sent to the same region again and again", _AGAIN, None, THREE,
          Refused("redirect|307|sends|region|elsewhere"),
          prepare=_in_ireland(301, "PermanentRedirect"), most_requests=60),
    Fault("sent to where nobody listens", None, None, THREE, Refused(".", lasting=None), prepare=_sent_on(307,
          at="http://127.0.0.1:1"),
          over=(TCP,)),
    Fault("sent from TLS to plain HTTP", None, None, THREE, Refused("encrypt|http://|redirect|307"), prepare=_to_plain,
          over=(TLS,), then=_told_keys),
    Fault("sent to log in", None, None, (*THREE, "head", "delete"), Refused("302|redirect|log in|sends|elsewhere"),
          prepare=_to_log_in,
          then=_told_keys),
    Fault("its clock is five hours ahead", None, None, ALL, prepare=_ahead(5 * 3600), seen="peak/s5cmd#205"),
    Fault("its clock is a day behind", None, None, ALL, prepare=_ahead(-86400.0), seen="boto/boto#1399"),
]  # fmt: skip
