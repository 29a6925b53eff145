"""What a save does if too much waits for the store, or the disk is full: it waits, or raises an error."""

from __future__ import annotations

import contextlib
import errno

from ..agent.backlog import is_short_of_disk
from ..config import ASK_SLICE_S, Config
from ..errors import AgentError, BacklogError, WaitTimeout
from ..ipc.client import AgentClient
from ..spool.journal import FAILED, RELEASED, order
from ..spool.spool import Spool
from ..system.files import wait_for
from ..system.undisturbed import go_on, undisturbed

#: Errors that end when others remove something.
_FULL = {errno.ENOSPC, errno.EDQUOT}


def await_room(client: AgentClient, spool: Spool, config: Config, folder: str, *, wait: bool = True) -> None:
    """Where the backlog is full, wait or raise, as ``on_backlog`` says. With ``supersede`` the agent drops older ones.

    Parameters
    ----------
    folder : str
        Where what is to be saved lies.
    wait : bool
        False: a full backlog is an error at once. Whoever saves has other work meanwhile, and tries again later.

    Raises
    ------
    BacklogError
        It is full, or was for ``backlog_timeout_s`` seconds.
    """
    if config.on_backlog == "supersede" or not _may_be_full(spool, config, folder):
        return
    limit = config.backlog_timeout_s if config.on_backlog == "wait" and wait else 0.0
    _await_room(client, config, folder, limit)


@undisturbed
def _await_room(client: AgentClient, config: Config, folder: str, limit: float) -> None:
    deadline = client.clock.monotonic() + limit
    while True:
        go_on()
        piece = max(min(deadline - client.clock.monotonic(), ASK_SLICE_S), 0.0)
        try:
            answer = client.request("room", piece + config.reply_timeout_s, folder=folder, timeout_s=piece)
        except (AgentError, WaitTimeout):
            return  # Whatever is wrong with the agent: it is no reason not to save.
        if not answer["full"]:
            return
        if client.clock.monotonic() >= deadline:
            waited = f" after {limit:g} s" if limit else ""
            raise BacklogError(
                f"The store cannot keep up{waited}: {answer['full']}",
                hint="Save less often, raise the limit, or choose on_backlog='supersede'",
            )


def await_release(client: AgentClient, spool: Spool, config: Config, error: Exception) -> bool:
    """For a save that failed because the disk, or a quota, was full: wait until the agent gives some of it back.

    Parameters
    ----------
    error : Exception
        What the save failed with.

    Returns
    -------
    bool
        Whether to try again. False: the save failed for another reason, nothing is on its way to the store, or
        ``on_backlog`` says not to wait.
    """
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno not in _FULL:
        return False
    if config.on_backlog != "wait" or not config.min_free_bytes:
        return False
    return _await_release(client, spool, config)


@undisturbed
def _await_release(client: AgentClient, spool: Spool, config: Config) -> bool:
    deadline = client.clock.monotonic() + config.backlog_timeout_s
    for identity in sorted(spool.records.ids(), key=order):
        state = ""
        while state != FAILED and (left := deadline - client.clock.monotonic()) > 0:
            go_on()
            piece = min(left, ASK_SLICE_S)
            try:
                answer = client.request("wait", piece + config.reply_timeout_s, id=identity, timeout_s=piece)
            except (AgentError, WaitTimeout):
                return False
            state = answer["state"]
            if not state or state in RELEASED:
                with contextlib.suppress(TimeoutError):  # To remove much takes a while.
                    wait_for(lambda: identity not in spool.records, ASK_SLICE_S, identity)  # noqa: B023
                return True
    return False


def _may_be_full(spool: Spool, config: Config, folder: str) -> bool:
    """Whether the agent is to be asked for room. This itself asks nobody, as a save is to take a millisecond."""
    if config.max_pending_bytes or is_short_of_disk(folder, config):
        return True
    return bool(config.max_pending) and len(spool.records.ids()) >= config.max_pending
