"""A process that saves for clients of the agent's socket. The agent starts it (``agent/socket_saves.py``).

It saves as any subprocess of the task does, one save after the other, in the order in which they were asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import traceback
from typing import Any, get_args, get_type_hints

from ..config import Config
from ..errors import CheckpointError, UsageError, shorten
from ..ipc import protocol
from ..ipc.protocol import Message
from ..spool.spool import Spool
from ..system.log import write_lines_with
from ..system.printable import valid
from ..system.processes import ignore_terminal_signals, raise_descriptor_limit
from .checkpointer import Checkpointer
from .options import SaveOptions
from .reference import Reference

#: What may be asked for, and of which type it is; ``Any``: of every type.
FIELDS: dict[str, Any] = {
    "path": str,
    **{name: (get_args(kind) or (kind,))[0] for name, kind in get_type_hints(SaveOptions).items()},
    "attempt": int,
}  # fmt: skip

#: Most bytes of metadata: it comes back in the answer, in one frame with the rest of the reference.
MAX_METADATA = protocol.MAX_FRAME // 4

#: Longest error in characters: it may quote what the client sent.
_MAX_ERROR = 4000


def main(arguments: list[str]) -> None:
    """Entry point: ``saver <descriptor of the socket> <spool>``."""
    descriptor, directory = arguments
    ignore_terminal_signals()
    raise_descriptor_limit()
    with socket.socket(fileno=int(descriptor)) as sock:
        SocketSaver(directory, Config.from_env()).serve(sock)


class SocketSaver:
    """Saves into one spool, whatever attempt runs.

    Parameters
    ----------
    directory : str
        The spool.
    """

    def __init__(self, directory: str, config: Config) -> None:
        limit = min(config.metadata_bytes, MAX_METADATA)
        self._directory, self._config = directory, dataclasses.replace(config, metadata_bytes=limit)
        #: Lines of the log for the client whose save is done now.
        self._warnings: list[str] = []
        write_lines_with(self._warnings.append)
        self._checkpointer: Checkpointer | None = None

    def serve(self, sock: socket.socket) -> None:
        """Answer until the agent says that it ends, or dies."""
        decoder = protocol.Decoder()
        with contextlib.suppress(ConnectionError):
            while data := protocol.receive(sock)[0]:
                for message, _ in decoder.feed(data, []):
                    if message["op"] == "stop":
                        self._close()
                        return
                    if message["op"] == "save":
                        sock.sendall(protocol.encode({"n": message.pop("n"), **self._answer(message)}))
        if self._checkpointer is not None:
            try:
                self._checkpointer.hand_over()
            except CheckpointError as error:
                print(f"async_ckpt saver: {error}", flush=True)  # To agent.log; there is nobody else to tell.
        self._close()

    def _close(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close(clean=False)
            self._checkpointer = None

    def _answer(self, message: Message) -> Message:
        self._warnings.clear()
        try:
            reference = self._save({name: value for name, value in message.items() if name != "op"})
        except CheckpointError as error:
            return {"error": shorten(str(error), _MAX_ERROR), "kind": error.kind}
        except Exception as error:
            traceback.print_exc()
            return {"error": shorten(f"The save failed: {error!r}", _MAX_ERROR), "kind": "CheckpointError"}
        warnings = {"warnings": list(self._warnings)} if self._warnings else {}
        return {"id": reference.id, "reference": valid(reference), **warnings}

    def _save(self, fields: dict[str, Any]) -> Reference:
        """Save as asked; the errors are those of ``Checkpointer.save``."""
        check_fields(fields)
        spool = Spool.open(self._directory, attempt=fields.pop("attempt", None))
        spool.check_attempt()
        if self._checkpointer is not None and self._checkpointer.task != spool.task:
            self._close()
        if self._checkpointer is None:
            self._checkpointer = Checkpointer(spool, self._config)
        reference = self._checkpointer.save(fields.pop("path"), **fields)
        # Others flush: nothing is kept of it here.
        self._checkpointer.tracker.saved.pop(reference.id, None)
        return reference


def check_fields(fields: dict[str, Any]) -> None:
    """See that a save can be made of what a client sent.

    Raises
    ------
    UsageError
        A field is missing, unknown, or of the wrong type.
    """
    for name, value in fields.items():
        if name not in FIELDS:
            raise UsageError(f"A save has no field {name!r}", hint=f"It has {', '.join(FIELDS)}, timeout_s")
        if FIELDS[name] is not Any and type(value) is not FIELDS[name]:
            raise UsageError(f"The field {name!r} of a save is no {FIELDS[name].__name__}: {value!r}")
    path = fields.get("path", "")
    if not os.path.isabs(path) or "\0" in path:
        raise UsageError(f"path={path!r} is not an absolute path", hint="The agent has another working directory")
