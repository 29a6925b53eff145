"""Somebody who looks at the store all the time, as a dashboard or another run would."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from async_ckpt import layout
from async_ckpt.config import DEATHS_TO_SUSPECT
from async_ckpt.spool import journal
from harness.kills import numbered_saves
from harness.kills.ledger import Ledger
from harness.tasks.task import TASK

_EVERY_S = 0.005


class Reader(threading.Thread):
    """Looks until it is told to stop. Whatever can be seen must be whole; what is older must be there as well.

    Parameters
    ----------
    root : Path
        Where the store's objects lie as files.
    spool : Path
        Whose journal is looked at as well: it may be gone with its spool in the end.
    ledger : Ledger
        Of what was promised.
    fault : callable
        Says what is wrong with a checkpoint, by the store's root and its reference.
    """

    def __init__(
        self,
        root: Path,
        spool: Path,
        ledger: Ledger,
        fault: Callable[[Path, Mapping[str, Any]], str] = numbered_saves.fault_in_store,
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self._root, self._ledger, self._fault = root, ledger, fault
        self.over = threading.Event()
        self.looks = 0
        #: What was seen that must not be: path → what is wrong.
        self.partial: dict[str, str] = {}
        #: Promised ones that were not there when a newer one was: right only of those that failed, and of suspects.
        self._passed: set[str] = set()
        #: With these in hand so many uploaders or agents died in a row, as the journal said at some time, that they are
        #: tried after all others.
        self._suspects: set[str] = set()
        self.backwards: list[str] = []
        #: Why a checkpoint failed, by id, as the journal said at some time.
        self.failed: dict[str, str] = {}
        self._journal = journal.Reader(str(spool / "journal"))
        self._seen: dict[str, set[str]] = {TASK.task_folder: set(), TASK.scope_folder: set()}
        self._latest: dict[str, Any] = {}

    def run(self) -> None:
        try:
            while not self.over.wait(_EVERY_S):
                self.look()
        except Exception as error:  # A reader that is not there sees nothing wrong.
            self._ledger.errors.append(f"the reader failed: {error!r}")
            raise

    def look(self) -> None:
        """Look once."""
        self.looks += 1
        for folder, seen in self._seen.items():
            latest = self._read(folder, layout.LATEST)  # First: what it names must be in the listing.
            for name in self._names(folder) - seen:
                seen.add(name)
                self._check(folder, name)
            if latest is not None and latest != self._latest.get(folder):
                self._check_latest(folder, latest)
        self._check_order()
        for identity, known in self._journal.look().items():
            if known.state == journal.FAILED:
                self.failed[identity] = known.why
            if known.tries >= DEATHS_TO_SUSPECT:
                self._suspects.add(identity)

    def out_of_order(self) -> set[str]:
        """Ids that a newer one went before without a reason."""
        # What has failed may be missing, whatever else is wrong.
        return self._passed - self._suspects - (self.failed.keys() - self.committed().keys())

    def committed(self) -> dict[str, dict[str, Any]]:
        """Metadata of all that is committed now, by id."""
        found = {}
        for name in self._names(TASK.task_folder):
            data = self._read(TASK.task_folder, name)
            if data is not None:
                found[name.removesuffix(".metadata")] = data
        return found

    def latest(self, folder: str) -> str | None:
        """Key of the newest, as the store says."""
        data = self._read(folder, layout.LATEST)
        return str(data["key"]) if data is not None else None

    def _names(self, folder: str) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return {name for name in os.listdir(self._root / folder) if layout.metadata_name_parts(folder, name)}
        return set()

    def _read(self, folder: str, name: str) -> dict[str, Any] | None:
        path = self._root / folder / name
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
            return data
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.partial[str(path)] = f"metadata: {error}"
            return None

    def _check(self, folder: str, name: str) -> None:
        data = self._read(folder, name)
        if data is not None and (fault := self._fault(self._root, data)):
            self.partial[f"{folder}/{name}"] = fault

    def _check_latest(self, folder: str, data: dict[str, Any]) -> None:
        before, self._latest[folder] = self._latest.get(folder), data
        if before is not None and layout.order(data) < layout.order(before):
            self.backwards.append(f"latest went from {before['key']} to {data['key']}")
        name = layout.parse_key(data["key"]).task_metadata_key(TASK.pathspec)
        if not (self._root / name).exists():
            self.partial[f"{folder}/{layout.LATEST}"] = f"it names {data['key']}, which is not committed"

    def _check_order(self) -> None:
        seen = {journal.order(name.removesuffix(".metadata")) for name in self._seen[TASK.task_folder]}
        newest = max(seen, default=(-1, -1))
        older = [save for save in list(self._ledger.promised.values()) if save.order < newest]
        missing = [save.id for save in older if save.order not in seen and save.id not in self._passed]
        if missing:
            # A listing may pass over what is made meanwhile; what is newer was made before this second one began.
            names = self._names(TASK.task_folder)
            self._passed.update(identity for identity in missing if f"{identity}.metadata" not in names)
