"""Targets for tasks: those of ``servers.target``, and ``sink``, which counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .servers import PLAIN_BODIES, Sink, Target, s3_environment, sink, target

SINK = "sink"


@contextlib.contextmanager
def counted_target(name: str, work: str, *options: str) -> Iterator[tuple[Target, Sink | None]]:
    """A store by its name, and the counting server behind it where it is ``sink``; ``options`` of that server."""
    if name != SINK:
        with target(name, work) as store:
            yield store, None
        return
    with sink(*options) as server:
        yield Target(SINK, s3_environment(server.url) | PLAIN_BODIES, work), server
