"""What an agent is made of below its three large parts, which all work on it."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config
from ..spool.journal import Journal
from ..spool.spool import Spool
from ..system.clock import Clock
from .annotating import Annotating
from .card import Card
from .child import Child
from .deadline import LastCall
from .deaths import Deaths
from .exposure import Exposure
from .housekeeping import Housekeeping
from .leases import Leases
from .owners import Owners
from .pace import Pace
from .queue import Queue
from .remover import Remover
from .retaining import Retaining
from .socket_saves import SocketSaves
from .starts import Starts
from .throughput import Throughput
from .unreachable import Unreachable


@dataclass(frozen=True)
class Parts:
    """One of each; what it does stands in its class."""

    spool: Spool
    config: Config
    clock: Clock
    queue: Queue
    unreachable: Unreachable
    journal: Journal
    house: Housekeeping
    leases: Leases
    remover: Remover
    uploader: Child
    owners: Owners
    starts: Starts
    socket_saves: SocketSaves
    deaths: Deaths
    throughput: Throughput
    pace: Pace
    last_call: LastCall
    exposure: Exposure
    card: Card
    retaining: Retaining
    annotating: Annotating
