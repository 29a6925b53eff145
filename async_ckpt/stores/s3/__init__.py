"""S3: ``store.py`` is the store. What its client is made with stands here, since it needs no library of AWS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Opens a source of credentials in a session of its own, and returns what asks it: that returns an object like
#: botocore's ``ReadOnlyCredentials`` (``access_key``, ``secret_key``, ``token``), or None where there are none. Both
#: may block and raise anything.
OpenCredentials = Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class S3Settings:
    """What an S3 client is made with, as taken from Metaflow or given by the user.

    Parameters
    ----------
    client_params : mapping
        Of botocore's ``create_client``.
    credentials : callable or None
        None: the keys in ``client_params``, else the usual AWS chain.
    server_side_encryption : str or None
        As the header has it.
    """

    client_params: Mapping[str, Any] = field(default_factory=dict)
    credentials: OpenCredentials | None = None
    server_side_encryption: str | None = None
