"""Every limit and every setting, in one place.

A setting is read from the environment variable ``METAFLOW_ASYNC_CKPT_<NAME>``, so that it reaches the
agent, subprocesses and remote pods without a file. Units stand in the names: ``_s`` seconds, ``_bytes`` bytes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from .errors import UsageError

ENV_PREFIX = "METAFLOW_ASYNC_CKPT_"

#: Set in a task's environment: the directory of its spool and the attempt that runs.
ENV_SPOOL = "ASYNC_CKPT_SPOOL"
ENV_ATTEMPT = "ASYNC_CKPT_ATTEMPT"

#: Name of the directory that holds a user's spools, before the user's number.
SPOOLS_PREFIX = "async-ckpt-"

#: How long a process of a task waits for what was removed from the spool to be made again, in seconds.
RESTORE_S = 2.0

#: What is sent is handed on, and counted, in pieces of so many bytes. (Pieces of a MiB are slower.)
PIECE_BYTES = 256 << 10
#: Size in bytes of the units in which content is digested and multipart uploads are cut.
CHUNK_BYTES = 16 << 20

# Times that nobody needs to turn, in seconds; what is a matter of taste is a field of ``Config``.

#: When the machine is about to go: how often the notice's file is looked for; the longest pause after a failure; how
#: long a checkpoint may bring nothing new before another one has its turn, at least and at most.
NOTICE_LOOK_S = 1.0
LAST_CALL_PAUSE_S = 1.0
LAST_CALL_LEAST_S, LAST_CALL_MOST_S = 0.5, 5.0
#: The longest pause of a checkpoint that the store does not take, and how often, at most, the task hears of one.
OUTAGE_PAUSE_S = 60.0
HELD_UP_S = 60.0
#: How long a new uploader may need until it says something.
WORKER_START_S = 3.0
#: After a SIGTERM: for how long the agent is asked at a time; what of that is for its answer; what is left of the time
#: for the process to end in.
HURRY_SLICE_S = 3.0
HURRY_ANSWER_S = 0.5
TERMINATION_MARGIN_S = 1.0
#: The store's rate: over how much time it is taken; over how little it says nothing; over how much it can be planned
#: with.
RATE_WINDOW_S = 5.0
RATE_LEAST_S = 0.2
RATE_KNOWN_S = 1.0
#: An agent that is started again: so often at once, then after pauses, of which the first is so long; for how long it
#: must have lived for its deaths not to be counted together. The same for its uploader.
RESTARTS_AT_ONCE = 3
FIRST_PAUSE_S = 0.25
CALM_S = 60.0
#: After so many deaths in a row with the same checkpoint in hand it is suspected, and tried alone, after all others;
#: after so many of the uploader, or of the agent (which may have died of something else), it has failed.
DEATHS_TO_SUSPECT, DEATHS_OF_UPLOADER, DEATHS_OF_AGENT = 5, 8, 12
#: An agent that lacks descriptors, memory or disk: its first and longest pause, and how often in a row it goes on.
SHORT_FIRST_S, SHORT_MOST_S, SHORT_TIMES = 0.1, 2.0, 20
#: How often whoever has no agent looks for one, and for how long at most a new attempt does before it fails.
NO_AGENT_LOOK_S = 0.25
NO_AGENT_START_S = 180.0
#: An agent that says nothing is asked after so many seconds whether it is there.
PING_S = 10.0
#: What hangs is so many times longer waited for if it waits for a disk, or is busy; so long only if time is short.
HUNG_ON_DISK, HUNG_BUSY = 4, 20
HUNG_HURRY_S = 3.0
#: How long a process that was killed may take to be gone, and a file system to show a folder.
KILLED_S = REACH_S = 5.0
#: Ranks that wait for each other: between two looks at the store, at first and at last; and after pauses of which
#: length it is asked whether rank 0 is still there.
GATHER_FIRST_S, GATHER_LAST_S = 0.1, 5.0
GATHER_SUSPICION_S = 0.5
#: How long whoever needs a version waits, at most, for somebody to ask the store for it.
CLAIM_START_S = 60.0
#: How long credentials are used before their source is asked again (botocore renews them ten minutes or more before
#: they expire); how often, at most, for a new session where an answer may be about something else; how long it has
#: peace after a failure, as each question may be a process, or be counted and limited.
CREDENTIALS_LIFE_S = 60.0
CREDENTIALS_AMBIGUOUS_S = 3.0
CREDENTIALS_PEACE_S = 2.0
#: A failure of what all requests wait for counts for all of them for so long.
FAILURE_SHARED_S = 2.0
#: How long a request over a connection that may be dead listens before it sends the bulk; how long a cancelled or
#: failed upload may take to tidy up; how long closing waits for threads that nobody waits for any more.
LISTEN_S = 1.0
TIDY_UP_S = 10.0
LEFT_BEHIND_S = 2.0


@dataclass(frozen=True)
class Config:
    """Limits and settings of one process; immutable, read once."""

    #: Directory under which spools are made; empty: ``temp_dir_root`` or one of the system's (``spool/place.py``).
    spool_dir: str = ""
    #: Files smaller than this are copied at save time, into one file: cheaper than a link and a lease.
    pack_below_bytes: int = 32 << 10
    #: What is written to while it is captured is captured again: so often, and no more after so many seconds. Where
    #: files vanished meanwhile, it must be still for so long, or it may be on its way out.
    capture_tries: int = 20
    capture_timeout_s: float = 60.0
    capture_vanished_s: float = 0.5
    #: At most so many leases held by one process; files beyond are reflinked or copied.
    max_leases: int = 2000
    #: How long copying a file away may take when a trainer comes to rewrite it, which the kernel holds up for 45 s (or
    #: half of what that is here). What would take longer is copied in the background as soon as it is saved.
    copy_away_s: float = 20.0
    #: Checkpoints uploaded side by side by one agent.
    max_uploads: int = 2
    #: Parts in flight in the data plane, to begin with: more are tried, up to the second, while they bring more.
    parts_in_flight: int = 8
    max_parts_in_flight: int = 64
    #: Files of a checkpoint, and small objects, under way side by side.
    files_in_flight: int = 32
    #: Bytes a second that the agent's uploads to S3 may take; 0: as many as there are.
    max_bandwidth_bytes_s: int = 0
    #: Send the CRC-32 of what is uploaded to S3, for the store to verify.
    checksums: bool = True
    #: Wait for the disk before an object of the local store counts as written.
    local_fsync: bool = True
    #: Smallest multipart part; grows with the file so that 10,000 parts suffice.
    part_bytes: int = CHUNK_BYTES
    #: Attempts at one store request, the first included, and their total deadline.
    store_attempts: int = 8
    store_deadline_s: float = 600.0
    #: Limits of one request to S3: for name look-up, connection and handshake; for the answer once it is sent; for the
    #: answer where the store puts an object together, from parts or from another object; and for a body of which less
    #: than a KiB moves. A connection that has been idle for longer is not used again.
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 60.0
    complete_timeout_s: float = 600.0
    stall_timeout_s: float = 60.0
    idle_connection_s: float = 12.0
    #: How long the source of credentials may take to answer.
    credentials_timeout_s: float = 60.0
    #: What objects on S3 are encrypted with, besides Metaflow's own METAFLOW_S3_SERVER_SIDE_ENCRYPTION: a key of KMS
    #: (and whether the bucket's key stands between), or a key of the user's own, 32 bytes in base64.
    s3_kms_key_id: str = ""
    s3_bucket_key: bool = False
    s3_sse_c_key: str = ""
    #: Storage class of files (not of metadata), and whether whoever asks pays.
    s3_storage_class: str = ""
    s3_requester_pays: bool = False
    #: How long a commit may be held up by noting which checkpoint is the latest: a hint.
    latest_timeout_s: float = 20.0
    #: How long a checkpoint is tried again while the store is out of reach, before it has failed.
    outage_s: float = 1800.0
    #: Limits of the backlog, of what is saved and not yet in the store: checkpoints, and their bytes; 0: none.
    max_pending: int = 0
    max_pending_bytes: int = 0
    #: Free bytes of the snapshots' disk below which the backlog is full as well (on a small disk, a twentieth of it).
    min_free_bytes: int = 256 << 20
    #: Free inodes of that disk below which it is full as well (of few, a twentieth); some file systems count none.
    min_free_inodes: int = 1000
    #: What a save does then: ``wait`` until there is room, ``raise``, or ``supersede``: it never waits, and the oldest
    #: that are neither on their way nor the newest of their name are dropped.
    on_backlog: str = "wait"
    #: Limit of that wait.
    backlog_timeout_s: float = 3600.0
    #: Whether a symbolic link that leads nowhere is an error (``refuse``) or saved as it stands (``keep``). How many
    #: folders that stand elsewhere may be reached through links.
    dangling_links: str = "refuse"
    max_linked_folders: int = 1000
    #: How many files are stored a second time, under the paths of symbolic links that lead to them, for clients that
    #: know no links.
    max_files_behind_links: int = 10_000
    #: Whether a checkpoint that cannot be stored is an error (``raise``) or a line in the log (``warn``).
    on_failure: str = "raise"
    #: How long a task lives on after a SIGTERM, to bring in what it can. The file in which a notice says when the
    #: machine will be taken away (``agent/notice.py``).
    termination_grace_s: float = 30.0
    spot_notice_file: str = "/tmp/spot_termination_notice"
    #: A notice of an end further away than this changes only the order (the newest goes first), and nothing waits; one
    #: that is further away than the second is no end of a machine: a wrong clock, or somebody else's file.
    notice_near_s: float = 600.0
    notice_ignored_s: float = 86400.0
    #: From which level on lines are written to the task's log, by its name in Python's ``logging``.
    log_level: str = "INFO"
    #: Limit of a task-end flush.
    flush_timeout_s: float = 6 * 3600.0
    #: How long the ranks of a collective save wait for each other, once their own shard is in the store; and for those
    #: of an earlier attempt, of which nobody knows whether they saved.
    collective_timeout_s: float = 1800.0
    collective_grace_s: float = 10.0
    #: How long a new attempt waits until the last one's saves on this disk are in the store, where it needs them there.
    settle_timeout_s: float = 60.0
    #: How long a task that needs a version waits for the store to say whether its attempt was begun before.
    claim_wait_s: float = 10.0
    #: How long the nodes of a gang wait for node 0 to say what all of them load.
    gang_start_timeout_s: float = 1800.0
    #: Limit of the best-effort flush after a user's exception.
    exception_flush_timeout_s: float = 300.0
    #: How long an agent whose task is gone goes on uploading.
    drain_timeout_s: float = 3600.0
    #: Limit of one answer of the agent to a request that does not wait for uploads.
    reply_timeout_s: float = 10.0
    #: How long no agent, or no uploader, can be started until the work is done by the process that wants one.
    agent_patience_s: float = 30.0
    #: The longest pause before one that has died again and again is started once more.
    agent_pause_s: float = 15.0
    #: An agent that lives, but does not answer and does nothing for so long is ended, and another one started.
    hung_s: float = 15.0
    #: How often the spool is scanned for checkpoints whose doorbell was lost.
    rescan_s: float = 1.0
    #: How often the times of the spool's files are set anew, for what removes files by their age alone.
    touch_s: float = 3600.0
    #: How long a watched checkpoint that says nothing else must be quiet before it counts as finished.
    watch_settle_s: float = 30.0
    #: So many that are not finished yet, or are gone and may have been, are kept captured for one watched directory; of
    #: one with more files than that it is not done; and so many bytes of them are copies, where links would not do.
    watch_held: int = 32
    watch_hold_files: int = 20_000
    watch_copy_bytes: int = 256 << 20
    #: Limits of a checkpoint's metadata, as JSON: bytes in all, elements of one value, and levels (200 at most). What
    #: is beyond is replaced by a text. From so many bytes on the task's log says once that it belongs into a file.
    metadata_bytes: int = 1 << 20
    metadata_elements: int = 100_000
    metadata_depth: int = 64
    metadata_notice_bytes: int = 64 << 10
    #: Of a JSON file that a watch takes metadata from: what is read at most, and how much is taken.
    metadata_file_bytes: int = 64 << 20
    metadata_from_bytes: int = 16 << 10
    #: How often a flush writes a progress line.
    progress_s: float = 5.0
    #: Send unsigned payloads over plain HTTP as well (TLS and loopback do without asking).
    unsigned_payload: bool = False

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> Config:
        """Read the settings from the environment.

        Raises
        ------
        UsageError
            A value cannot be read as the setting's type; the variable is named.
        """
        values: dict[str, object] = {}
        for item in fields(cls):
            name = ENV_PREFIX + item.name.upper()
            text = environment.get(name)
            if text is None:
                continue
            kind = type(item.default)
            try:
                values[item.name] = value = _parse(kind, text)
                if value == 0 and item.name in _POSITIVE:
                    raise ValueError(text)
            except ValueError:
                raise UsageError(
                    f"{name}={text!r} is not a valid {kind.__name__}", hint=f"Unset {name} or correct it"
                ) from None
            choices = CHOICES.get(item.name)
            if choices and value not in choices:
                raise UsageError(f"{name}={text!r} is unknown", hint=f"Use one of {', '.join(filter(None, choices))}")
        config = cls(**values)  # type: ignore[arg-type]
        config.check()
        return config

    def check(self) -> None:
        """Refuse settings that cannot be honoured together.

        Raises
        ------
        UsageError
            Two kinds of encryption; a key that is none. The key is not shown.
        """
        if not self.s3_sse_c_key:
            return
        name = f"{ENV_PREFIX}S3_SSE_C_KEY"
        if self.s3_kms_key_id or self.s3_bucket_key:
            raise UsageError(f"{name} and a key of KMS cannot encrypt the same objects", hint="Set one of them")
        try:
            length = len(base64.b64decode(self.s3_sse_c_key, validate=True))
        except ValueError:
            length = 0
        if length != 32:
            raise UsageError(
                f"{name} is not a key of 32 bytes in base64", hint="Make one with: openssl rand -base64 32"
            )


#: The values of settings that have few.
CHOICES = {
    "on_backlog": ("wait", "supersede", "raise"),
    "on_failure": ("raise", "warn"),
    "dangling_links": ("refuse", "keep"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
    # Not GLACIER and DEEP_ARCHIVE: a retry could not read its checkpoint for hours.
    "s3_storage_class": (
        "", "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR",
        "EXPRESS_ONEZONE", "OUTPOSTS",
    ),
}  # fmt: skip

#: Settings for which zero would mean that nothing is ever done.
_POSITIVE = (
    "max_uploads",
    "parts_in_flight",
    "max_parts_in_flight",
    "files_in_flight",
    "part_bytes",
    "store_attempts",
    "connect_timeout_s",
    "answer_timeout_s",
    "complete_timeout_s",
    "stall_timeout_s",
    "credentials_timeout_s",
    "metadata_bytes",
    "metadata_elements",
    "metadata_depth",
    "reply_timeout_s",
    "hung_s",
    "rescan_s",
    "touch_s",
    "progress_s",
)


def _parse(kind: type, text: str) -> object:
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise ValueError(text)
    if kind in (int, float):
        number: float = kind(text)
        if not number >= 0:  # Also refuses nan.
            raise ValueError(text)
        return number
    return text


def is_spools_name(name: str) -> bool:
    """Whether a directory of this name may be one that holds this user's spools (see ``spool/place.py``)."""
    mine = f"{SPOOLS_PREFIX}{os.getuid()}"
    return name == mine or name.startswith(f"{mine}-")
