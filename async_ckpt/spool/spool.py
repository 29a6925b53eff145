"""The spool: checkpoints on this machine's disk, from their capture until they are in the store.

One directory per task (all attempts), 0700::

    spool.json              which task, which store                     written by each attempt's start
    start.<attempt>         which start of the attempt this is (see claim.py)   under flock
    versions.<attempt>      counts saves, a decimal number              under flock, by every saver
    collective.<attempt>.<rank>  counts a rank's collective saves       under the same flock
    launches.<attempt>      whoever started ranks, one a line           under the same flock
    pidns                   the PID namespace of the task               written by each attempt's start
    savers/<pid>.<pidns>    locked by a saver of another PID namespace while it lives   by it
    data/<pid>-<random>/    snapshots: what ``save()`` captured (savers of another PID namespace: see ``owner.py``)
    data/<pid>-<random>.pack   its small files, one after the other     by savers
    data/<pid>-<random>.held/  what a watch captured early (watch/early_capture.py); perhaps a checkpoint     by savers
    annexes                 further directories like data/, one a line  by savers, appended
    staging/                a record being written, where it needs a name: <pid>-<random>.json   by savers
    ready/<id>.json         ADMITTED. id = <attempt>.<name>.<version>   named so by savers, removed by the agent
    journal                 what became of them                         by the agent alone (see journal.py)
    work/<attempt>-<random>/  the task's ``current.checkpoint.directory``
    agent.lock, agent.pid, agent.log, launch.lock, agent.sock -> agent-<random>.sock    the agent's (see agent/)

Admission is the moment in which a record, complete by then, gets its name in ``ready/`` (by a link, or by a rename
where files cannot be without a name): before it there is no checkpoint, after it there is one, whoever dies. The record
is the truth and names everything needed: reference, manifest, where the data lies.

What cleans temporary directories may take any of this away: ``upkeep.py`` says what is done about it.

Hard links need the data on the file system of what is saved. Where that is not the spool's, the data lies in an
*annex*, ``<directory>/.async_ckpt-<uid>/<spool's name>-<its inode>/``, and only the record in the spool. The directory
is as near to the mount point as one can be made: whoever removes what was saved, or the folder around it, must not
remove the snapshot with it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import layout
from ..capture.base import remove_snapshot
from ..capture.content import pack_path
from ..capture.copy_speed import CopySpeed
from ..capture.habits import Habits
from ..capture.walk import ANNEX_PREFIX
from ..config import RESTORE_S
from ..errors import IntegrityError, NotOurs, SpoolError, os_hint, os_reason
from ..manifest import LINK, PACKED, FileEntry, Manifest, dump
from ..stores.base import StoreSpec
from ..system.files import locked, remove_tree, wait_for, write_atomically, write_new
from ..system.mounts import down_from_mount
from . import claim, journal
from .abilities import try_out
from .claim import Start
from .owner import Owner, note_namespace

FORMAT = 1

#: Locks are held for microseconds; one that is not free for so long never will be.
_LOCK_TIMEOUT_S = 10.0

#: The ending of a directory for what may become a checkpoint.
_HELD = ".held"

#: Of so many directories it is remembered where their annex is.
_MAX_PARENTS = 1000


@dataclass(frozen=True)
class Admitted:
    """One record of ``ready/``.

    Parameters
    ----------
    id : str
        ``<attempt>.<name>.<version>``.
    reference : dict
        What users get and what the store will hold (``layout.reference``).
    manifest : Manifest
        As captured.
    data : str
        Absolute directory of the snapshot.
    source : str
        Absolute path that was saved.
    captured_ns : int
        Wall time when its capture began, in nanoseconds.
    """

    id: str
    reference: dict[str, Any]
    manifest: Manifest
    data: str
    source: str
    captured_ns: int = 0

    @property
    def order(self) -> tuple[int, int]:
        return layout.order(self.reference)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.reference["size"])

    @functools.cached_property
    def entries(self) -> dict[str, FileEntry]:
        """The manifest's files by path."""
        return {entry.path: entry for entry in self.manifest.files}

    def file(self, path: str) -> str:
        """Absolute path of one captured file."""
        return os.path.join(self.data, path)


class Spool:
    """A task's spool; every process of the task has its own object over the same directory.

    Use ``Spool.create`` in the task and ``Spool.open`` elsewhere.
    """

    def __init__(self, directory: str, task: layout.TaskInfo, store: StoreSpec) -> None:
        self.directory, self.task, self.store = directory, task, store
        #: By parent of what is saved.
        self._annex_for: dict[str, str] = {}
        #: What ``spool.json`` was, and which attempt it named, when it was last read: (inode, mtime in nanoseconds).
        self._identity: tuple[int, int] | None = None
        self._running = task.attempt
        self._owner = Owner(directory)
        #: Whether this process knows that the task runs, and may make the spool again where it is removed.
        self.may_make = False
        #: What people should know of the place it is in.
        self.notes: list[str] = []
        #: What was counted last by this object, by counter: a file that is made again must not fall behind it.
        self._counted: dict[str, int] = {}
        self._gone = False
        #: Annexes whose file system does not answer: nobody looks into them.
        self.silent: frozenset[str] = frozenset()
        self._start: Start | None = None
        #: Whether a process of this machine has begun this attempt before.
        self._begun_before = False

    # -- making and finding one ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: str, task: layout.TaskInfo, store: StoreSpec) -> Spool:
        """Make the spool of a task under ``root``, or take up the one an earlier attempt left.

        Raises
        ------
        SpoolError
            It cannot be made (permissions, full disk), belongs to somebody else, or cannot work on that file system.
        """
        directory = cls.place(root, task, store)
        spool = cls(directory, task, store)
        spool.may_make = True
        try:
            private_directory(root)
            spool.notes = try_out(root)
            _make_private(directory)
            spool._make_folders()
            note_namespace(directory)
            write_atomically(spool.path("spool.json"), spool._identity_json())
        except OSError as error:
            raise _spool_error("The spool cannot be made", directory, error) from error
        return spool

    @classmethod
    def find(cls, root: str, task: layout.TaskInfo, store: StoreSpec) -> bool:
        """Whether there is a spool of the task under ``root``, made by this user; also one that has lost files."""
        directory = cls.place(root, task, store)
        try:
            found = [os.lstat(path) for path in (root, directory)]
            if not all(stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() for status in found):
                return False
            return os.path.exists(os.path.join(directory, "spool.json")) or bool(
                os.listdir(os.path.join(directory, "ready"))
            )
        except OSError:
            return False

    @staticmethod
    def place(root: str, task: layout.TaskInfo, store: StoreSpec) -> str:
        """Where the spool of a task is, or would be."""
        node = [task.node] if task.nodes > 1 else []  # Nodes of a gang may share this machine.
        return os.path.join(root, layout.short_hash([task.pathspec, store.root, *node], 16))

    def _identity_json(self) -> bytes:
        return dump({"format": FORMAT, "task": asdict(self.task), "store": self.store.to_json()})

    def _make_folders(self) -> None:
        for name in ("data", "staging", "ready"):
            _make_private(self.path(name))

    def mend(self) -> None:
        """Make the directories again that something has removed. In a process that knows that the task runs also the
        spool itself and ``spool.json``; what that said of a later attempt stays.

        Raises
        ------
        SpoolError
            They cannot be made.
        """
        try:
            if self.may_make and not os.path.isdir(self.directory):
                private_directory(os.path.dirname(self.directory))
                _make_private(self.directory)
            self._make_folders()
            if self.may_make and not os.path.lexists(self.path("pidns")):
                note_namespace(self.directory)
            path = self.path("spool.json")
            if self.may_make and not os.path.exists(path):
                with contextlib.suppress(FileExistsError):
                    write_new(path, self._identity_json(), f"{path}.{os.getpid()}")
        except OSError as error:
            raise _spool_error("The spool cannot be mended", self.directory, error) from error

    @classmethod
    def open(cls, directory: str, *, attempt: int | None = None) -> Spool:
        """Open an existing spool.

        Raises
        ------
        SpoolError
            There is none, it is somebody else's, or of another version.
        """
        path = os.path.join(directory, "spool.json")
        try:
            if os.getuid() not in (os.stat(directory).st_uid, 0):
                raise _not_ours(directory)
            with open(path, "rb") as file:
                data = json.load(file)
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}")
            task = layout.TaskInfo(**data["task"])
            store = StoreSpec.from_json(data["store"])
        except (FileNotFoundError, NotADirectoryError) as error:
            hint = "The task that owned it has ended; its checkpoints are in the store"
            raise SpoolError(f"There is no spool: {os_reason(error)}", where=path, hint=hint) from error
        except OSError as error:
            raise _spool_error("The spool cannot be read", path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SpoolError(
                f"Not a spool of this version of async_ckpt: {error}",
                where=path,
                hint="Remove the directory, or upgrade",
            ) from error
        if attempt is not None:
            task = layout.TaskInfo(**{**asdict(task), "attempt": attempt})
        return cls(directory, task, store)

    def _annex(self, parent: str, device: int) -> str | None:
        """This spool's directory for data that lies in ``parent``; None: there can be none."""
        annex = self._annex_for.get(parent)
        if annex is not None and os.path.isdir(annex):
            return annex
        if len(self._annex_for) >= _MAX_PARENTS:
            self._annex_for.clear()
        for folder in down_from_mount(parent):
            # Not in that one: it may be somebody else's, or another subvolume. In the next, perhaps.
            with contextlib.suppress(OSError, SpoolError):
                if os.stat(folder).st_dev == device:
                    self._annex_for[parent] = annex = self._make_annex(folder)
                    return annex
        return None

    def _make_annex(self, folder: str) -> str:
        annexes = os.path.join(folder, f"{ANNEX_PREFIX}{os.getuid()}")
        # One of an earlier spool of the task has another name.
        annex = os.path.join(annexes, f"{os.path.basename(self.directory)}-{os.stat(self.directory).st_ino}")
        private_directory(annexes)
        private_directory(annex)
        if annex not in self._annex_for.values():
            with open(self.path("annexes"), "ab") as file:
                file.write(json.dumps(annex).encode() + b"\n")
        return annex

    @functools.cached_property
    def _device(self) -> int:
        return os.stat(self.directory).st_dev

    def path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def habits(self) -> Habits:
        """What is known of the files that are saved on this disk."""
        path = os.path.join(os.path.dirname(self.directory), "habits")
        return Habits(path, os.path.realpath(self.path("work")), f"{self.task.flow}/{self.task.step}")

    def copy_speed(self) -> CopySpeed:
        """How fast this disk copies."""
        return CopySpeed(os.path.join(os.path.dirname(self.directory), "pace"))

    def check_attempt(self) -> None:
        """For processes that may outlive their task: see that the attempt they belong to still runs. Microseconds.

        What such a process saved into the spool of a later attempt would take versions that the store has already.

        Raises
        ------
        SpoolError
            The attempt has ended: the spool is gone, or it is a later attempt's.
        """
        path, attempt = self.path("spool.json"), self.task.attempt
        why = ""
        try:
            self._gone = not (os.path.exists(path) or (not self._gone and comes_back(path)))
            status = os.stat(path)
            if (status.st_ino, status.st_mtime_ns) != self._identity:
                with open(path, "rb") as file:
                    self._running = int(json.load(file)["task"]["attempt"])
                self._identity = status.st_ino, status.st_mtime_ns
            if self._running != attempt:
                why = f"attempt {self._running} runs now"
        except (FileNotFoundError, NotADirectoryError):
            why = "its spool is gone"
        except OSError as error:
            raise _spool_error("The spool cannot be read", path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SpoolError(f"The spool is damaged: {error}", where=path, hint="Let the step be retried") from error
        if why:
            pathspec = self.task.pathspec
            raise SpoolError(
                f"Attempt {attempt} of the task {pathspec} has ended: {why}", where=self.directory,
                hint="Nothing can be saved in its name any more: let the step wait for its subprocesses. "
                f"What it saved is shown by Checkpoint().list(task={pathspec!r})",
            )  # fmt: skip

    # -- saving ----------------------------------------------------------------------------------------------------

    def new_data_directory(self, source: str) -> str:
        """A path, not yet made, for the snapshot of ``source``: on its file system if that can be written to.

        Raises
        ------
        SpoolError
            This is root, and the task is another user's: its agent could read nothing of what is saved here.
        """
        self._check_user()
        name = f"{self._owner.name()}-{secrets.token_hex(8)}"
        # Where no annex can be made, files are copied into the spool instead.
        with contextlib.suppress(OSError, SpoolError):
            device = os.stat(source).st_dev
            parent = os.path.dirname(os.path.realpath(source)) if device != self._device else ""
            if parent and (annex := self._annex(parent, device)):
                return os.path.join(annex, name)
        if not os.path.isdir(self.path("data")):
            self.mend()
        return self.path("data", name)

    def _check_user(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            owner = os.stat(self.directory).st_uid
            if owner != os.getuid():
                raise SpoolError(
                    f"The task belongs to user {owner}, and this process to user {os.getuid()}: the task's agent could "
                    "not read what is saved here",
                    where=self.directory, hint=f"Save as its user: sudo --user='#{owner}'",
                )  # fmt: skip

    def new_held_directory(self, source: str) -> str:
        """The same, for what may become a checkpoint or not. It is swept up after this process."""
        return self.new_data_directory(source) + _HELD

    def new_work_directory(self) -> str:
        """An empty directory for the task to write its checkpoints in; those of earlier attempts are removed."""
        folder = self.path("work")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            for name in os.listdir(folder):
                if not name.startswith(f"{self.task.attempt}-"):
                    remove_tree(os.path.join(folder, name))
            return tempfile.mkdtemp(dir=folder, prefix=f"{self.task.attempt}-")
        except OSError as error:
            raise _spool_error("The checkpoint directory cannot be made", folder, error) from error

    def remove_work_directory(self, directory: str) -> None:
        """Remove what ``new_work_directory`` made; one that is gone is no error."""
        try:
            remove_tree(directory)
        except OSError as error:
            raise _spool_error("The checkpoint directory cannot be removed", directory, error) from error

    def attempt_began_ns(self) -> int:
        """When this attempt began, or later (wall clock); 0 for the first one."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path("work")).st_mtime_ns if self.task.attempt or self._begun_before else 0
        return 0

    def start_path(self, attempt: int) -> str:
        """The file that says which start of an attempt runs."""
        return self.path(f"start.{attempt}")

    def begin(self) -> None:
        """In the task's own process, at its start: which start of the attempt this is, the agent is to ask the store.

        Raises
        ------
        SpoolError
            The spool cannot be written.
        """
        self._start, self._begun_before = None, os.path.exists(self.start_path(self.task.attempt))
        claim.begin(self.start_path(self.task.attempt))

    @property
    def start(self) -> Start | None:
        """Which start of the attempt this is; None: that is not known yet.

        Raises
        ------
        SpoolError
            It cannot be read.
        """
        if self._start is None:
            self._start = claim.read(self.start_path(self.task.attempt))
        return self._start

    def go_alone(self) -> Start:
        """Begin without the store's word; ``SpoolError`` if the spool cannot be written."""
        self._start = claim.go_alone(self.start_path(self.task.attempt), self.task)
        return self._start

    @property
    def _start_number(self) -> int:
        return self.start.number if self.start is not None else 0

    def next_version(self) -> int:
        """The next version number of this attempt: one counter for all processes of the task on this node."""
        with self._versions() as fd:
            counter = self._count(fd)
            self._set(fd, counter + 1)
        return self.task.version(counter)

    def upcoming_version(self) -> int:
        """What ``next_version`` would give out now; it does not take it."""
        with self._versions() as fd:
            return self.task.version(self._count(fd))

    def next_collective(self, rank: int, launch: str = "", turns: int = 1) -> int:
        """The version of a rank's next collective save; its n-th is the n-th of every rank.

        Parameters
        ----------
        rank : int
            Of all that save together, from 0.
        launch : str
            What all ranks have in common that were started together. With every new one they count from 1 again, as a
            rank that died may be behind the others.
        turns : int
            How many it takes: more than one after some that could not be counted.

        Raises
        ------
        SpoolError
            It cannot be counted; or this rank has been started again since.
        """
        count = self.path(f"collective.{self.task.attempt}.{rank}")
        with self._versions() as fd, locked(count, timeout_s=_LOCK_TIMEOUT_S) as count_fd:
            launches, counter = self._generation(launch), max(_counter(count_fd), self._counted.get(count, 0))
            generation = self._start_number * layout.GENERATIONS + launches
            number = max(counter, generation * layout.GENERATION_STEP) + turns
            if number > (generation + 1) * layout.GENERATION_STEP or launches >= layout.GENERATIONS:
                raise SpoolError(
                    f"Rank {rank} was started again since, or has saved {layout.GENERATION_STEP} times with others: "
                    "this process can take part in no collective save any more",
                    where=count, hint="Let the step be retried",
                )  # fmt: skip
            os.pwrite(count_fd, b"%d" % number, 0)
            self._counted[count] = number
            # What is saved after it has a higher version.
            self._set(fd, max(self._count(fd), number * layout.COLLECTIVE_STEP + 1))
        return self.task.collective_version(number)

    def _generation(self, launch: str) -> int:
        """How many others there were before this launch in this attempt. The versions are locked."""
        with open(self.path(f"launches.{self.task.attempt}"), "a+b") as file:
            file.seek(0)
            line, known = f"{launch}\n".encode(), file.readlines()
            if line not in known:
                file.write(line)
                known.append(line)
        return known.index(line)

    def ranks(self, attempt: int) -> list[int]:
        """As which ranks processes on this node have saved together with others in an attempt."""
        prefix = f"collective.{attempt}."
        ranks = (name[len(prefix) :] for name in os.listdir(self.directory) if name.startswith(prefix))
        return sorted(int(rank) for rank in ranks if rank.isdecimal())

    @contextlib.contextmanager
    def _versions(self) -> Iterator[int]:
        """The counter's file, locked."""
        path = self.path(f"versions.{self.task.attempt}")
        try:
            if not os.path.isdir(self.directory):
                self.mend()
            with locked(path, timeout_s=_LOCK_TIMEOUT_S) as fd:
                yield fd
        except OSError as error:
            raise _spool_error("No version number can be taken", self.directory, error) from error

    def _count(self, fd: int) -> int:
        """What the counter of versions says; where its file was removed and made again, what it said at least."""
        counter = max(_counter(fd), self._counted.get("versions", 0), self._start_number * layout.START_STEP)
        if not os.fstat(fd).st_size:
            used = [*self.ready_ids(), *journal.read(self.path("journal"))]
            counter = max(
                [counter, *(self.task.counter(v) for a, v in map(journal.order, used) if a == self.task.attempt)]
            )
        return counter

    def _set(self, fd: int, counter: int) -> None:
        os.pwrite(fd, b"%d" % counter, 0)
        self._counted["versions"] = counter

    def count_from(self, name: str, least: int) -> None:
        """See that a counter of this spool, by its file's name, is not below what was seen of it."""
        with locked(self.path(name), timeout_s=_LOCK_TIMEOUT_S) as fd:
            if _counter(fd) < least:
                os.pwrite(fd, b"%d" % least, 0)

    def admit(
        self, reference: Mapping[str, Any], manifest: Manifest, data: str, source: str, captured_ns: int = 0
    ) -> Admitted:
        """Make a captured snapshot a checkpoint. After this returns it survives the death of any process.

        The parameters are those of ``Admitted``.

        Raises
        ------
        SpoolError
            The record cannot be written; there is no checkpoint, and the snapshot is the caller's to drop.
        """
        identity = layout.identity(reference)
        admitted = Admitted(identity, dict(reference), manifest, data, os.path.abspath(source), captured_ns)
        try:
            try:
                self.write_record(admitted)
            except FileNotFoundError:
                self.mend()
                self.write_record(admitted)
        except OSError as error:
            raise _spool_error("The checkpoint cannot be admitted", self.path("ready"), error) from error
        return admitted

    def write_record(self, admitted: Admitted) -> None:
        """Give a record its name in ``ready/``. ``OSError`` if that cannot be done."""
        record = {name: value for name, value in vars(admitted).items() if name in Admitted.__dataclass_fields__}
        record["manifest"] = admitted.manifest.to_json()
        staged = self.path("staging", f"{self._owner.name()}-{secrets.token_hex(8)}.json")
        write_new(self.path("ready", f"{admitted.id}.json"), dump(record), staged)

    # -- reading ---------------------------------------------------------------------------------------------------

    def ready_ids(self) -> list[str]:
        """Ids of what is admitted and not yet released, in no particular order."""
        try:
            names = os.listdir(self.path("ready"))
        except FileNotFoundError:
            return []
        return [name[: -len(".json")] for name in names if name.endswith(".json")]

    def is_ready(self, identity: str) -> bool:
        """Whether a checkpoint is admitted and not yet released."""
        return os.path.exists(self.path("ready", f"{identity}.json"))

    def read(self, identity: str) -> Admitted | None:
        """One record; None if it is not (or no longer) there.

        Raises
        ------
        IntegrityError
            It is damaged, or another user's.
        SpoolError
            It cannot be read now.
        """
        path = self.path("ready", f"{identity}.json")
        try:
            with open(path, "rb") as file:
                data = json.load(file)
            manifest = Manifest.from_json(data["manifest"], where=path)
            if not layout.is_reference(data["reference"]) or not isinstance(data["reference"].get("size"), int):
                raise ValueError("its reference is damaged")
            captured_ns = int(data.get("captured_ns", 0))  # Records of earlier versions do not say.
            return Admitted(identity, data["reference"], manifest, data["data"], data["source"], captured_ns)
        except FileNotFoundError:
            return None
        except PermissionError as error:  # Another user has written it.
            raise IntegrityError(
                f"The spool's record of checkpoint {identity} cannot be read: {os_reason(error)}", where=path,
                hint="Let whoever saves be the task's user",
            ) from error  # fmt: skip
        except OSError as error:
            raise _spool_error(f"The record of checkpoint {identity} cannot be read", path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"The spool's record of checkpoint {identity} cannot be read: {error}", where=path,
                hint="It is left where it is; the checkpoint cannot be uploaded",
            ) from error  # fmt: skip

    def pending(self) -> list[Admitted]:
        """All readable records, oldest first."""
        found = []
        for identity in self.ready_ids():
            with contextlib.suppress(IntegrityError, SpoolError):
                item = self.read(identity)
                if item is not None:
                    found.append(item)
        return sorted(found, key=lambda item: item.order)

    # -- the agent's part ------------------------------------------------------------------------------------------

    def saver_may_live(self, item: Admitted) -> bool:
        """Whether the process may live that captured a checkpoint, and with it the leases that it took."""
        return self._owner.may_live(os.path.basename(item.data).partition("-")[0])

    def drop_record(self, identity: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path("ready", f"{identity}.json"))

    def leftovers(self) -> set[str]:
        """What savers that died in mid-save left: data directories and staged records. Those of processes that live
        stay.
        """
        found: set[str] = set()
        for folder in (self.path("data"), self.path("staging"), *self._annexes(self.directory)):
            with contextlib.suppress(FileNotFoundError):
                found.update(
                    os.path.join(folder, name)
                    for name in os.listdir(folder)
                    if not self._owner.may_live(name.partition("-")[0])
                )
        return found

    def sweep(self, leftovers: set[str]) -> list[str]:
        """Remove leftovers; nothing if some record cannot be read, as it may need one of them. Returns what people
        should know.
        """
        if len(self.pending()) < len(self.ready_ids()):
            return []
        told = []
        for target in leftovers:
            if os.path.isdir(target) and not os.path.islink(target):
                if target.endswith(_HELD):
                    told += [_held_in_vain(name) for name in os.listdir(target)]
                remove_snapshot(target)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
        return told

    def set_aside(self, dispensable: Container[str]) -> str | None:
        """Take the whole spool away by one rename, so that the task's next attempt finds all of it or nothing.

        Parameters
        ----------
        dispensable : container of str
            Ids of records that may go with it.

        Returns
        -------
        str or None
            Where it is now, for ``remove``; None if something else was admitted meanwhile: it is back.
        """
        gone = f"{self.directory}.gone-{os.getpid()}"
        os.rename(self.directory, gone)
        names = os.listdir(os.path.join(gone, "ready"))
        if any(name.removesuffix(".json") not in dispensable for name in names):
            os.rename(gone, self.directory)
            return None
        return gone

    def remove(self, gone: str) -> None:
        """Remove a spool that was set aside, and its annexes."""
        for annex in self._annexes(gone):
            remove_tree(annex)
            with contextlib.suppress(OSError):  # Not empty: another task's annex is beside it.
                os.rmdir(os.path.dirname(annex))
        remove_tree(gone)

    def _annexes(self, directory: str) -> list[str]:
        try:
            with open(os.path.join(directory, "annexes"), "rb") as file:
                return [annex for annex in dict.fromkeys(json.loads(line) for line in file) if annex not in self.silent]
        except (FileNotFoundError, ValueError):
            return []

    def annexes(self) -> list[str]:
        """Further directories like ``data/`` that savers have made."""
        return self._annexes(self.directory)


def torn_file(item: Admitted, uploaded: Container[str]) -> str | None:
    """The first file of a snapshot that is not what was captured, or None. Those ``uploaded`` are in the store
    already and do not matter.
    """
    return next((e.path for e in item.manifest.files if e.path not in uploaded and is_torn(item, e)), None)


def is_torn(item: Admitted, entry: FileEntry) -> bool:
    """Whether a captured file was removed, or written to while no lease was held.

    A link that is still the trainer's inode must have the facts of its capture. Another inode is a private copy, made
    under the lease and renamed over the link.
    """
    try:
        if entry.how == PACKED:
            return os.stat(pack_path(item.data)).st_size < entry.offset + entry.size
        status = os.stat(item.file(entry.path), follow_symlinks=False)
    except FileNotFoundError:
        return True
    linked = entry.how == LINK and status.st_ino == entry.ino
    return status.st_size != entry.size or (linked and status.st_mtime_ns != entry.mtime_ns)


def _held_in_vain(name: str) -> str:
    return (
        f"{name} was captured, and not known to be finished, when its watch was killed: that capture is dropped. If it "
        "is still where its trainer wrote it, the next watch sees it there"
    )


def _counter(fd: int) -> int:
    return int(os.pread(fd, 32, 0) or b"0")


def private_directory(path: str) -> None:
    """Make a directory only its owner can use; refuse one that somebody else prepared."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _make_private(path)


def _make_private(path: str) -> None:
    """The same below a directory that is there. ``FileNotFoundError`` if it is taken away in this moment."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise _not_ours(path)
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o700)


def _not_ours(path: str) -> NotOurs:
    return NotOurs(
        "The spool's directory belongs to somebody else", where=path,
        hint="Remove it, or set METAFLOW_ASYNC_CKPT_SPOOL_DIR to a directory of your own",
    )  # fmt: skip


def comes_back(path: str) -> bool:
    """Whether something that was removed from a spool is made again, as its agent does while the task runs."""
    try:
        wait_for(lambda: os.path.exists(path), RESTORE_S, path)
    except TimeoutError:
        return False
    return True


def _spool_error(what: str, where: str, error: OSError) -> SpoolError:
    return SpoolError(f"{what}: {os_reason(error)}", where=where, hint=os_hint(error))
