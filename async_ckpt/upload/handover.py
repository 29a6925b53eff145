"""What the agent knows of a checkpoint's earlier tries, on its way to the worker that tries again.

One small frame for each file and part, as frames are bounded; they come before the ``upload`` they are meant for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..ipc.protocol import Message
from ..spool.journal import Progress
from ..spool.spool import Admitted
from ..spool.stored import StoredFile
from ..stores.base import Multipart

#: The tar's place among the paths of a checkpoint's files.
TAR = ""


@dataclass
class Handover:
    """What need not be sent.

    Parameters
    ----------
    done : dict
        Files whose bytes are in the store: path → CRCs.
    parts : dict
        Multipart uploads that were begun, by path.
    unchanged : dict
        Files that the store has under another key, by path.
    """

    done: dict[str, list[int]] = field(default_factory=dict)
    parts: dict[str, Multipart] = field(default_factory=dict)
    unchanged: dict[str, StoredFile] = field(default_factory=dict)

    def take(self, message: Message) -> None:
        """Take in one of the messages that ``messages`` made."""
        path, op = message["path"], message["op"]
        if op == "done":
            self.done[path] = message["crc32"]
        elif op == "unchanged":
            self.unchanged[path] = StoredFile(message["key"], message["crc32"])
        elif op == "parts":
            self.parts[path] = Multipart(message["upload"], message["part_bytes"])
        elif op == "part":
            self.parts[path].parts[message["number"]] = message["etag"], message["crc32"]


def messages(identity: str, known: Progress, unchanged: Mapping[str, StoredFile]) -> Iterator[Message]:
    """What to tell a worker before it uploads a checkpoint."""
    for path, crc32 in known.files.items():
        yield {"op": "done", "id": identity, "path": path, "crc32": crc32}
    for path, file in unchanged.items():
        if path not in known.files:
            yield {"op": "unchanged", "id": identity, "path": path, "key": file.key, "crc32": file.crc32}
    for path, multipart in known.parts.items():
        begun = {"upload": multipart.upload, "part_bytes": multipart.part_bytes}
        yield {"op": "parts", "id": identity, "path": path, **begun}
        for number, (etag, crc32) in multipart.parts.items():
            part = {"number": number, "etag": etag, "crc32": crc32}
            yield {"op": "part", "id": identity, "path": path, **part}


def stored_bytes(item: Admitted, known: Progress) -> int:
    """How much of a checkpoint is in the store for good, as far as it is known: whole files, and parts of others."""
    files = sum(item.entries[path].size for path in known.files if path in item.entries)
    return files + sum(
        min(len(upload.parts) * upload.part_bytes, item.entries[path].size if path in item.entries else item.size)
        for path, upload in known.parts.items()
    )
