"""What the agent does about files that something removes from its spool: makes them again, and says so."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable

from ..config import Config
from ..errors import SpoolError
from ..ipc.server import Server
from ..spool.journal import Journal
from ..spool.records import Admitted, torn_file
from ..spool.spool import Spool
from ..spool.upkeep import Upkeep
from .naming import is_named, name_of, name_socket, open_socket

#: So many missing files are named.
_NAMED = 5


class Housekeeping:
    """Looks after the spool's files, and the agent's socket among them.

    Parameters
    ----------
    pid : int
        The agent's, as it stands in ``agent.pid``.
    """

    def __init__(self, spool: Spool, config: Config, journal: Journal, server: Server, pid: int) -> None:
        self._spool, self._server, self._pid = spool, server, pid
        self._upkeep = Upkeep(spool, config, journal)
        #: Whether the last look found something missing.
        self.is_damaged = False

    def look(self, items: Iterable[Admitted]) -> str:
        """Make again what is missing. Returns what people should know of it; nothing, mostly.

        Parameters
        ----------
        items : iterable of Admitted
            All that must have a record.
        """
        spool, where = self._spool, self._spool.directory
        try:
            missing = self._upkeep.look(items)
            if self._upkeep.holds and not is_named(spool, name_of(self._server.listening)):
                missing.append("agent.sock")
                self._server.listen_on(open_socket(spool))
                name_socket(spool, name_of(self._server.listening), self._pid)
        except (OSError, SpoolError) as error:
            self.is_damaged = True
            return f"Something removes files from {where}, and they cannot be made again: {error}"
        self.is_damaged = bool(missing)
        if not missing:
            return ""
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return (
            f"Something removes files from {where} while the task runs. Made again: "
            f"{', '.join(missing[:_NAMED])}{more}. Keep what cleans temporary directories away from it, or set "
            "METAFLOW_ASYNC_CKPT_SPOOL_DIR to another place"
        )

    def stop(self) -> None:
        """The agent ends."""
        self._upkeep.stop()


def removed(item: Admitted, stored: Container[str]) -> str:
    """Why a checkpoint cannot be stored, if something has removed a file of it that the store does not have."""
    torn = torn_file(item, stored)
    if torn is None or os.path.lexists(item.file(torn)):
        return ""
    return f"{torn} was removed from the spool before it was stored, by something that cleans that directory"
