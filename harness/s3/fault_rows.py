"""Words and shapes that rows of the table of faults have in common."""

from __future__ import annotations

from typing import Any

from harness.s3.fault_calls import CALLS
from harness.s3.fault_cells import EITHER, Fault, Refused
from harness.s3.faults import Inject
from harness.s3.memory_s3 import Request

ALL = tuple(CALLS)
WRITES = ("put", "stream", "part", "begin", "complete", "copy")
STORES = ("put", "stream", "part")
READS = ("get", "file", "ranged")
CONDITIONAL = ("put if", "create")
WITH_BODY = ("complete", "copy", "begin", "get", "file", "ranged", "list")
#: One of each kind, none of which moves much.
FEW = ("put", "get", "head", "list", "delete")
#: For what is slow to try.
THREE = ("put", "get", "list")

TIME = r"within [\d.]+ s|time.?out|timed out"
BROKEN = r"clos|reset|disconnect|abort|broken|EOF|incomplete|payload|ended|came|more expected|bytes"
NOT_S3 = r"log in|ETag|not S3|web page|HTML|document|status|range|result|means nothing"


def any_request(_: Request) -> bool:
    """Every request is meant."""
    return True


def both(
    name: str, inject: Inject, words: str, *, calls: tuple[str, ...] = ALL, always: tuple[str, ...] = FEW,
    waits: int = 0, fallback_words: str = "", **more: Any,
) -> list[Fault]:  # fmt: skip
    """A fault that passes, and one that does not."""
    lasts = tuple(call for call in always if call in calls) or calls
    fallback = Refused(fallback_words) if fallback_words else None
    return [
        Fault(f"{name}, once", inject, 1, calls, waits=waits, **more),
        Fault(f"{name}, always", inject, None, lasts, Refused(words), fallback=fallback, waits=3 * waits, **more),
    ]


def refused(name: str, inject: Inject, words: str, calls: tuple[str, ...] = FEW, **more: Any) -> list[Fault]:
    """A fault that does not pass. Once, it may be tried again or not, as long as what is said is true."""
    return [
        Fault(f"{name}, once", inject, 1, calls, EITHER, **more),
        Fault(f"{name}, always", inject, None, calls, Refused(words), **more),
    ]
