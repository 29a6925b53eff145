"""Every limit and every setting, in one place.

A setting is read from the environment variable ``METAFLOW_ASYNC_CKPT_<NAME>``, so that it reaches the
agent, subprocesses and remote pods without a file. Units stand in the names: ``_s`` seconds, ``_bytes`` bytes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, TypeVar

from .errors import UsageError

Number = TypeVar("Number", int, float)
#: The type of a setting for which zero would mean that nothing is ever done.
Positive = Annotated[Number, "not zero"]

#: The type of a setting that is a share of something: above 0, and up to 1.
Share = Annotated[float, "not zero, nor more than 1"]

ENV_PREFIX = "METAFLOW_ASYNC_CKPT_"

#: Set in a task's environment: the directory of its spool and the attempt that runs.
ENV_SPOOL = "ASYNC_CKPT_SPOOL"
ENV_ATTEMPT = "ASYNC_CKPT_ATTEMPT"

#: The most states that one process copies in the background at one time: the next save waits until one is done.
MAX_STAGING = 2
#: How many threads copy a state on the host where its training waits for that: more do not make it faster.
COPY_THREADS = 4
#: How much memory is left free at least when a state is staged in memory, as a share of what is available.
HOST_MEMORY_MARGIN = 0.1

#: Between two lines in the log that say what is in the store now lie so many seconds at least.
STORED_LINE_S = 10.0

#: Checkpoints that are not to be kept are removed at most so often, in seconds, and so many at a time. Whoever may
#: still need one has so long to say so, in seconds.
RETAIN_S = 5.0
RETAIN_MOST = 100
RETAIN_ANSWER_S = 10.0

#: What could not be added to the metadata of a checkpoint in the store is tried again after so many seconds.
ANNOTATE_AGAIN_S = 2.0

#: The card shows so many numbers of the metadata of a checkpoint, and so many characters of each text.
CARD_METRICS = 32
CARD_TEXT = 500
#: The card is written anew when something has changed, but not more often than this, in seconds; and at least so often.
CARD_REFRESH_S = 5.0
CARD_BEAT_S = 60.0
#: Between two updates of the whole page lie so many seconds at least, and as many as its bytes take at this rate.
CARD_PAGE_S = 15.0
CARD_PAGE_BYTES_S = 20_000
#: So many checkpoints may change before viewers have to load the whole page again.
CARD_UPDATE_ROWS = 200
#: How long one writing of the card may take, and how long the agent waits for the last one, in seconds.
CARD_TIMEOUT_S = 30.0
CARD_END_S = 10.0

#: Name of the directory that holds a user's spools, before the user's number.
SPOOLS_PREFIX = "async-ckpt-"

#: How long a process of the task waits for the agent to make again a file of the spool that something has removed.
RESTORE_S = 2.0
#: How long the kernel holds up a writer before it breaks a lease, in seconds, where it does not say.
KERNEL_LEASE_BREAK_S = 45.0
#: The first and the longest pause before a save captures again what somebody has written to meanwhile, in seconds.
CAPTURE_FIRST_PAUSE_S = 0.001
CAPTURE_LONGEST_PAUSE_S = 0.1
#: How long a process waits for the lock of a counter in the spool, in seconds. Such a lock is held for microseconds:
#: one that is not free for so long never will be.
SPOOL_LOCK_TIMEOUT_S = 10.0

#: The size of the pieces in which content is sent and progress is counted. (Pieces of a MiB are slower.)
PIECE_BYTES = 256 << 10
#: Size in bytes of the units in which content is digested and multipart uploads are cut.
CHUNK_BYTES = 16 << 20

#: Smaller content is not known again: to ask the store for a copy takes as long as to send it.
KNOWN_AGAIN_BYTES = 64 << 10
#: So many chunks of earlier checkpoints are known again, the last ones (of 1.6 TB); each takes 300 bytes of memory.
KNOWN_CHUNKS = 100_000

#: A checkpoint of this many bytes is worth asking the store what it has of earlier ones, and no longer than this.
EARLIER_BYTES, EARLIER_TIMEOUT_S = 1 << 20, 10.0

# Limits that no user needs to change. Names that end in _S are in seconds. What users may change is in ``Config``.

#: How often the agent looks for the file with the notice of the machine's end.
NOTICE_LOOK_S = 1.0
#: A notice of an end further away than the first only changes the order: the newest checkpoint goes first. One further
#: away than the second is ignored: it is a wrong clock, or a file of somebody else.
NOTICE_NEAR_S, NOTICE_IGNORED_S = 600.0, 86400.0
#: The machine is about to go: the longest pause before something that failed is tried again.
LAST_CALL_PAUSE_S = 1.0
#: The machine is about to go: an upload that stores nothing new for this long gives way to another one. It is a
#: share of the time that is left, but not less than the first, and not more than the second.
LAST_CALL_LEAST_S, LAST_CALL_MOST_S = 0.5, 5.0
#: The first and the longest pause before a checkpoint that the store did not take is tried again. (The first one also
#: for a suspect, since what an uploader died of may pass, such as a lack of memory.)
OUTAGE_FIRST_S, OUTAGE_PAUSE_S = 2.0, 60.0
#: How often, at most, the agent writes down what would be lost now; and over how many of the last uploads it is said
#: how long one takes.
EXPOSURE_WRITE_S, EXPOSURE_UPLOADS = 0.05, 5
#: ``due(every="auto")``: what a save is taken to cost before one was measured, in seconds; and of how many of the last
#: ones the median is taken.
DUE_ASSUMED_S, DUE_MEASURED = 5.0, 5
#: How often a rank that is ahead of rank 0 looks whether that has decided.
DECISION_LOOK_S = 0.001
#: The task is told at most this often that a checkpoint is held up.
HELD_UP_S = 60.0
#: How long the agent waits for something to happen before it looks around by itself.
AGENT_TICK_S = 0.2
#: How long a new uploader may need until it says something.
UPLOADER_START_S = 3.0
#: After a SIGTERM the agent is asked again and again how far it is: how long one question takes at most, and how much
#: of that is left for the answer.
HURRY_SLICE_S, HURRY_ANSWER_S = 3.0, 0.5
#: How much of the time after a SIGTERM is left for the process to end in.
TERMINATION_MARGIN_S = 1.0
#: The rate at which the store takes bytes is measured over the first of these times. What was measured over less than
#: the second says nothing, and plans may depend on what was measured over the third.
RATE_WINDOW_S, RATE_LEAST_S, RATE_KNOWN_S = 5.0, 0.2, 1.0
#: How often an agent (or uploader) that died is started again at once, and the first of the growing pauses after that.
RESTARTS_AT_ONCE, FIRST_PAUSE_S = 3, 0.25
#: After this long without a death of an agent (or uploader) the earlier ones no longer count.
CALM_S = 60.0
#: How many deaths in a row with the same checkpoint in hand make it a suspect, which is tried alone, after all others.
#: Then how many deaths of the uploader, and how many of the agent, make it fail. (An agent may have died of something
#: else, so it takes more of them.)
DEATHS_TO_SUSPECT, DEATHS_OF_UPLOADER, DEATHS_OF_AGENT = 5, 8, 12
#: An agent that lacks descriptors, memory or disk pauses and goes on: its first and longest pause, and how often in a
#: row it does that before it gives up.
SHORT_FIRST_S, SHORT_MOST_S, SHORT_TIMES = 0.1, 2.0, 20
#: How often something is looked at of which no event tells: whether there is an agent again, whether a signal has come.
LOOK_S = 0.25
#: How long a new attempt waits for an agent before it fails.
NO_AGENT_START_S = 180.0
#: An agent that has said nothing for this long is asked whether it is there.
PING_S = 10.0
#: An agent that does nothing is given this many times ``hung_s``: the first if it waits for a disk,
#: the second if it is busy.
HUNG_ON_DISK, HUNG_BUSY = 4, 20
#: After a SIGTERM an agent that does nothing is given only this long.
HUNG_HURRY_S = 3.0
#: How long a child of the agent may take to end what it does, before it is killed.
CHILD_STOP_S = 5.0
#: How long a new uploader waits for the end of the one before it.
UPLOADER_LOCK_S = 30.0
#: The uploader tells the agent this often how many bytes it has sent.
REPORT_S = 0.1
#: An agent that ends copies leased files away: how long it waits for copies that others have begun.
LAST_COPIES_S = 60.0
#: How long whoever ends waits for the end of its threads.
THREADS_END_S = 5.0
#: Whoever looks whether a process hangs may be stopped between two looks: a longer time between them counts as this
#: long.
HUNG_STEP_S = 2.0
#: Where others move the latest checkpoint in the same moment, it is tried again after a random pause of at most this
#: long at first, and twice as long each time.
MOVE_LATEST_PAUSE_S = 0.05
#: How long a process that was killed may take to be gone, and how long a file system may take to show a folder.
KILLED_S = REACH_S = 5.0
#: Ranks and nodes that wait for each other look into the store again after pauses that grow, from the first to the
#: second.
GATHER_FIRST_S, GATHER_LAST_S = 0.1, 5.0
#: Once the pauses are longer than this, ranks also look whether rank 0 has died.
GATHER_SUSPICION_S = 0.5
#: The first line of progress comes after ``Config.progress_s``. Each further pause is PROGRESS_GROWTH times as long as
#: the one before it, until it is PROGRESS_MOST times ``Config.progress_s``.
PROGRESS_GROWTH, PROGRESS_MOST = 1.5, 12
#: Whoever waits for a checkpoint, or for room for one more, asks the agent for this long at a time.
ASK_SLICE_S = 5.0
#: How long a save waits for an agent that ran already to say that it serves this process; without it, files are copied.
AGENT_CONFIRM_S = 1.0
#: An agent that leaves a question of a saver unanswered for so long hangs: the saver lets go of leases itself.
AGENT_SILENT_S = 2.0
#: If more connections to agents than this are lost in a row, each within this many seconds of the last, the agent does
#: not want us.
MAX_LOST_CONNECTIONS, LOST_CONNECTIONS_S = 5, 10.0
#: After Ctrl-C Metaflow kills the task within 5 s: for so long what was saved is brought in; the agent goes on later.
INTERRUPT_FLUSH_S = 2.0
#: How long an exception that a signal's handler raises waits until the save that it has interrupted has come to an end.
INTERRUPTED_END_S = 10.0
#: How long the agent is asked at a time for the number of this start.
CLAIM_SLICE_S = 1.0
#: How long a process that needs a version waits for somebody to ask the store for the number of this start.
CLAIM_START_S = 60.0
#: How long the source of the credentials may take to answer.
CREDENTIALS_TIMEOUT_S = 60.0
#: How long credentials are used before their source is asked again. (botocore renews them ten minutes or more before
#: they expire.)
CREDENTIALS_LIFE_S = 60.0
#: How often, at most, a new session is made after an answer that may be about the credentials, or about something else.
CREDENTIALS_AMBIGUOUS_S = 3.0
#: A request to the store that failed is sent again after a random pause of at most this much, which doubles with every
#: failure up to the second; a store that asks for a longer pause gets it, up to the third.
STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S = 0.5, 20.0
STORE_MAX_ASKED_PAUSE_S = 60.0
#: The local store: temporary files that are older than this were left by killed processes, and are removed.
TEMPORARY_FILE_LIFE_S = 24 * 3600.0
#: The local store: how long a write that depends on what is there waits for others who write in the same folder. Each
#: takes milliseconds.
FOLDER_LOCK_S = 30.0
#: How many parts are in flight is judged by what was transferred within this time.
CLIMB_WINDOW_S = 1.0
#: With a limit of bandwidth: a connection sends a piece about this often, since servers hang up on those that are
#: silent for long; no request waits longer than the second for its next piece; and what was not sent within the third
#: may be made up for, since nobody sends all the time.
THROTTLE_PIECE_S, THROTTLE_TURN_S, THROTTLE_BURST_S = 0.25, 2.0, 0.2
#: At a pace one connection more is used than would send so many bytes a second each: parts that are on their way at the
#: same time are all digested at once, and all begun anew if the uploader dies.
PACE_CONNECTION_BYTES_S = 4_000_000
#: The pace of uploads. A checkpoint is to be in the store when this share of the time until the next save is over, or
#: so many seconds. Where training feels uploads they may last longer, up to the third share.
PACE_SHARE, PACE_MOST_S, PACE_LAST_SHARE = 0.5, 900.0, 0.9
#: Whoever waits asks for a while, and then again: it still counts as waiting for so long after an answer.
WAITS_AGAIN_S = 1.0
#: Where this share of ``max_exposure`` would be reached, there is no pace.
PACE_EXPOSURE_SHARE = 0.8
#: It is the shortest of so many intervals that counts, of so many names at most. Where uploads are felt and no interval
#: is known, it is taken for the third, in seconds.
PACE_INTERVALS, PACE_NAMES, PACE_ASSUMED_S = 3, 64, 600.0
#: After so many seconds a thread of the agent lets another one run that waits for the interpreter.
SWITCH_INTERVAL_S = 0.0005
#: So many bytes a second are sent while a writer waits for a copy of at least the second number of bytes.
PACE_HELD_BYTES_S, PACE_HELD_FILE_BYTES = 1 << 20, 64 << 20
#: Otherwise nothing is sent more slowly than the first, in bytes a second. Checkpoints of so few bytes are sent at full
#: speed.
PACE_LEAST_BYTES_S, PACE_SMALL_BYTES = 4 << 20, 4 << 20
#: What needs more than this share of what the store takes is sent at full speed, until it needs less than the second.
PACE_FULL_SHARE, PACE_AGAIN_SHARE = 0.7, 0.5
#: The uploader is told of another pace at most this often, and only where it differs by this share.
PACE_CHANGE_S, PACE_CHANGE_SHARE = 1.0, 0.05
#: So often it is looked whether training feels uploads. It does where everything waits for a disk or for memory for
#: longer than this share of the time.
SLOWDOWN_LOOK_S, PRESSURE_SHARE = 2.0, 0.1
#: The task does nothing if it has used less than this share of a core for so long; it is looked every so many seconds.
#: Where steps are told it trains for so long after each, as it may only wait for its accelerator.
IDLE_SHARE, IDLE_AFTER_S, IDLE_LOOK_S, STEPS_LONGEST_S = 0.02, 10.0, 2.0, 300.0
#: Steps of the training: it takes so many to compare them, and the last so many are compared. One that takes longer
#: than so many usual ones counts as this long. So many processes may tell of theirs.
STEPS_LEAST, STEPS_JUDGED, STEPS_CLIPPED, STEPS_PROCESSES = 20, 200, 2.0, 64
#: A process tells about this often how long its steps took, of so many at most. Of those that are shorter than the
#: second their mean over that time is told.
STEPS_TELL_S, STEPS_SHORT_S, MAX_STEPS = 1.0, 0.01, 256
#: How long the addresses of an endpoint's name are used before it is looked up again.
LOOK_UP_S = 10.0
#: Where all requests wait for the same thing, such as the credentials or the address of the bucket, its failure counts
#: for all of them for this long.
FAILURE_SHARED_S = 2.0
#: A request over a connection that may be dead sends its head, and listens this long before it sends the content.
LISTEN_S = 1.0
#: How long an upload that was cancelled, or has failed, may take to tidy up.
TIDY_UP_S = 10.0
#: The most levels of nesting in metadata: readers of JSON have limits of their own.
METADATA_DEPTH = 64
#: From so many bytes on, the log says once that this metadata belongs into a file.
METADATA_NOTICE_BYTES = 64 << 10

#: A watched directory. What has stood still for so long is captured, in case its trainer removes it before it counts as
#: finished. Each time that this was too early, it must stand still for twice as long.
WATCH_STILL_S = 0.1
#: Looking at it takes at most this share of one core, measured over so many seconds.
WATCH_CPU_SHARE, WATCH_CPU_WITHIN_S = 0.05, 5.0
#: The shortest time between two looks.
WATCH_SHORTEST_PAUSE_S = 0.02
#: A save that failed is tried again after the first of these, then each time after twice as long, up to the second; if
#: only the backlog is full, up to the third.
WATCH_RETRY_FIRST_S, WATCH_RETRY_MOST_S, WATCH_ROOM_MOST_S = 0.5, 60.0, 5.0
#: When a watch has found nothing for so long, it says what is in the directory instead.
WATCH_EXPLAIN_S = 60.0
#: By how much the clock of a file system may be behind that of this machine.
WATCH_CLOCKS_S = 2.0
#: A watch that ends waits so long for what is still being written to, or ten times the quiet time, if that is longer.
WATCH_LAST_WRITES_S = 60.0
#: How much longer than its limit the end of a watch may take; and how much longer if it is in the middle of a save.
WATCH_END_S, WATCH_END_SAVING_S = 10.0, 1.0


@dataclass(frozen=True)
class Config:
    """Limits and settings of one process; immutable, read once.

    ``docs/settings.md`` is made of the headings and comments below (``python -m docs.settings``).
    """

    # -- Where checkpoints wait, and how they are captured --

    #: Directory under which spools are made. Empty: ``temp_dir_root``, or else a temporary directory of the system.
    spool_dir: str = ""
    #: Files smaller than this are copied by ``save()`` into one file: cheaper than a link and a lease for each.
    pack_below_bytes: int = 32 << 10
    #: How often ``save()`` captures again what somebody writes to while it is captured.
    capture_tries: int = 20
    #: For how long ``save()`` goes on capturing again what somebody writes to.
    capture_timeout_s: float = 60.0
    #: Where files vanished during the capture, the rest must be left alone for this long before it counts as whole.
    capture_vanished_s: float = 0.5
    #: The most leases that one process holds. Files beyond that number are cloned or copied.
    max_leases: int = 2000
    #: How long the agent may need to copy a file away when its trainer comes to rewrite it. The kernel makes the
    #: trainer wait for 45 s as a rule; half of that time counts if it is less. A file that would need longer is copied
    #: in the background right after it was saved.
    copy_away_s: float = 20.0
    #: What ``save()`` does with a symbolic link that leads nowhere: ``refuse`` it, or ``keep`` it as it stands.
    dangling_links: str = "refuse"
    #: The most folders outside of what is saved that may be reached through symbolic links.
    max_linked_folders: int = 1000
    #: The most files that are stored a second time, under the paths of symbolic links that lead to them. Clients that
    #: know no links, such as metaflow-checkpoint, need that.
    max_files_behind_links: int = 10_000
    #: How often the times of the spool's files are set anew, for programs that remove files by their age.
    touch_s: Positive[float] = 3600.0

    #: Directory in memory (tmpfs) in which ``save_state()`` stages. Empty: always in the spool.
    state_dir: str = "/dev/shm"
    #: The most bytes of memory that one process stages in; what does not fit is staged in the spool. 0: twice the
    #: largest state.
    max_host_bytes: int = 0
    #: Compare what was staged with the state again, and refuse what has changed meanwhile. Costs as much as the copy.
    check_state: bool = False

    # -- Uploads --

    #: How many checkpoints one agent uploads side by side.
    max_uploads: Positive[int] = 2
    #: How many parts of large files are on their way at first.
    parts_in_flight: Positive[int] = 8
    #: How many parts may be on their way, as long as more of them are faster.
    max_parts_in_flight: Positive[int] = 64
    #: How many files of one checkpoint, and small objects, are on their way side by side.
    files_in_flight: Positive[int] = 32
    #: Bytes a second that one agent's uploads to S3 may take. 0: no limit.
    max_bandwidth_bytes_s: int = 0
    #: While training goes on, send as fast as the ``interval`` between saves asks for, or always at ``full`` speed.
    pace: str = "interval"
    #: By which share (0.01: one per cent) steps may take longer while something is uploaded, where
    #: ``current.checkpoint.step()`` tells how long they take. Beyond that uploads take more time, if the interval
    #: between saves has it.
    max_slowdown: Share = 0.01
    #: Size of the smallest part of a multipart upload. Parts of large files are larger, so that 10,000 of them suffice.
    part_bytes: Positive[int] = CHUNK_BYTES
    #: Have the store copy what an earlier checkpoint has already, file by file and in units of 16 MiB, under any name.
    #: Off: only files that nobody has touched since are copied.
    content_digests: bool = True
    #: An object of the local datastore counts as stored when it is on the disk. Off: as soon as the kernel has it.
    local_fsync: bool = True
    #: How often one request to the store is tried, the first time included.
    store_attempts: Positive[int] = 8
    #: For how long one request to the store is tried in all.
    store_deadline_s: float = 600.0
    #: How long a checkpoint is tried again while the store is out of reach. After that it has failed.
    outage_s: float = 1800.0
    #: How long a commit may be held up by writing down which checkpoint is the latest. That note is only a hint.
    latest_timeout_s: float = 20.0

    # -- S3 --

    #: Send a CRC-32 with all content, for the store to verify. Off: for servers that do not know that header.
    checksums: bool = True
    #: Do not sign content over plain HTTP either, which saves reading it twice. Over TLS, and to this machine,
    #: content is never signed.
    unsigned_payload: bool = False
    #: Limit for name look-up, connection and TLS handshake together.
    connect_timeout_s: Positive[float] = 10.0
    #: Limit from the end of a request to S3 to its answer.
    answer_timeout_s: Positive[float] = 60.0
    #: Limit for that answer where the store puts an object together, from parts or from another object.
    complete_timeout_s: Positive[float] = 600.0
    #: Limit for content that stands still: less than a KiB is sent or received in this time.
    stall_timeout_s: Positive[float] = 60.0
    #: A connection that was idle for longer is not used again.
    idle_connection_s: float = 12.0
    #: Encrypt objects with this key of KMS. Metaflow's own METAFLOW_S3_SERVER_SIDE_ENCRYPTION counts as well.
    s3_kms_key_id: str = ""
    #: Use the bucket's key between the key of KMS and the objects.
    s3_bucket_key: bool = False
    #: Encrypt objects with a key of your own: 32 bytes in base64. It is sent with each request, so only over TLS. It is
    #: never written down.
    s3_sse_c_key: str = ""
    #: Storage class of files (not of metadata). Empty: the bucket's. ``GLACIER`` and ``DEEP_ARCHIVE`` are refused, as a
    #: retry could not read its checkpoint for hours.
    s3_storage_class: str = ""
    #: For buckets whose owner does not pay for requests.
    s3_requester_pays: bool = False

    # -- When much waits for the store, or the disk is nearly full --

    #: The most checkpoints that may wait for the store. 0: no limit.
    max_pending: int = 0
    #: The most bytes that may wait for the store. 0: no limit.
    max_pending_bytes: int = 0
    #: The disk counts as full below so many free bytes (on a small disk: below a twentieth of it).
    min_free_bytes: int = 256 << 20
    #: The disk counts as full below so many free inodes (or a twentieth of them). Some file systems count none.
    min_free_inodes: int = 1000
    #: What ``save()`` does at these limits: ``wait`` until there is room, ``raise``, or ``supersede``: return at once
    #: and drop the oldest that wait. The newest of a name, and what is being uploaded, are never dropped.
    on_backlog: str = "wait"
    #: How long ``save()`` waits for room at most.
    backlog_timeout_s: float = 3600.0
    #: Whether a checkpoint that cannot be stored fails the step (``raise``) or is only named in the log (``warn``).
    on_failure: str = "raise"

    # -- The end of a step, of a task, of a machine --

    #: How long the end of a step waits until everything is in the store.
    flush_timeout_s: float = 6 * 3600.0
    #: How long the end of a step waits after an exception of your code.
    exception_flush_timeout_s: float = 300.0
    #: How much work may be lost with the machine at most: where it is more seconds since the newest checkpoint that is
    #: in the store was captured, the log says so once, and once when that is over. 0: no limit.
    max_exposure_s: float = 0.0
    #: Mean time between failures of one machine, for ``due(every="auto")``. A day is that of a preemptible machine,
    #: which some clouds take away after a day at the latest. A gang of n nodes fails n times as often.
    mtbf_s: Positive[float] = 86400.0
    # PROGRESS_GROWTH and PROGRESS_MOST say how the later pauses grow.
    #: When a flush or a ``wait()`` writes its first line about its progress. The pauses between lines grow, to a minute
    #: by default.
    progress_s: Positive[float] = 5.0
    #: How long an agent whose task is gone goes on uploading.
    drain_timeout_s: float = 3600.0
    #: How long a task lives on after a SIGTERM to bring in what it can. 0: not at all. A handler of your own is left
    #: alone.
    termination_grace_s: float = 30.0
    #: The file in which a notice says when the machine will be taken away.
    spot_notice_file: str = "/tmp/spot_termination_notice"

    # -- The start of an attempt --

    #: How long a new attempt waits for uploads of the last one on this disk, where it needs them in the store. The
    #: nodes of a gang wait this long for the number of their start.
    settle_timeout_s: float = 60.0
    #: How long a task waits for the store to say whether the attempt was begun before.
    claim_wait_s: float = 10.0

    # -- Ranks that save together --

    #: How long ranks wait for each other's parts, once their own part is in the store.
    collective_timeout_s: float = 1800.0
    #: How long ranks wait for each other's parts where this task, or the attempt of the others, is gone.
    collective_grace_s: float = 10.0
    #: How long the nodes of a gang wait for node 0 to say what all of them load.
    gang_start_timeout_s: float = 1800.0

    # -- Watching --

    #: How long a watched checkpoint must be quiet before it counts as finished, where nothing else tells.
    watch_settle_s: float = 30.0
    #: The most checkpoints that one watch keeps captured while it is not known whether they are finished.
    watch_held: int = 32
    #: A checkpoint with more files than this is not captured early.
    watch_hold_files: int = 20_000
    #: The most bytes that one watch copies early, where links would not do.
    watch_copy_bytes: int = 256 << 20

    # -- Metadata --

    #: The most bytes of a checkpoint's metadata, as JSON. What is beyond is replaced by a text that says so.
    metadata_bytes: Positive[int] = 1 << 20
    #: The most bytes that are read of a JSON file from which a watch takes metadata.
    metadata_file_bytes: int = 64 << 20
    #: The most bytes of metadata that a watch takes from such a file.
    metadata_from_bytes: int = 16 << 10

    # -- Which checkpoints are kept --

    #: Keep so many of the newest checkpoints of each name; others are removed from the store, unless another rule keeps
    #: them (docs/retention.md). 0: this is no rule. With no rule at all everything is kept.
    keep_last: int = 0
    #: Keep those that are best by a number in their metadata: its name, ``min`` or ``max``, and how many, such as
    #: ``loss min 3``. Empty: this is no rule.
    keep_best: str = ""
    #: Keep those whose version is a multiple of this. 0: this is no rule.
    keep_every: int = 0
    #: Whether checkpoints that the artifacts of a task refer to are kept, whatever these rules say.
    keep_referenced: bool = True

    # -- The agent, and what is said --

    #: From which level on lines are written to the task's log: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
    log_level: str = "INFO"
    #: Whether a line in the task's log says when a checkpoint is in the store.
    log_stored: bool = True
    #: Whether the task has a card that shows its checkpoints while it runs.
    card: bool = True
    #: Limit for one answer of the agent to a question that does not wait for uploads.
    reply_timeout_s: Positive[float] = 10.0
    #: How long no agent, or no uploader, can be started before whoever needs it does the work itself.
    agent_patience_s: float = 30.0
    #: The longest pause before an agent that has died again and again is started once more.
    agent_pause_s: float = 15.0
    #: An agent or an uploader that does nothing for this long, and should, is ended, and another one started.
    hung_s: Positive[float] = 15.0
    #: How often the agent looks into the spool for checkpoints of which it was not told.
    rescan_s: Positive[float] = 1.0

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
                if value == 0 and "Positive" in str(item.type):
                    raise ValueError(text)
                if item.type == "Share" and not 0 < float(text) <= 1:
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
    "pace": ("interval", "full"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
    # Not GLACIER and DEEP_ARCHIVE: a retry could not read its checkpoint for hours.
    "s3_storage_class": (
        "", "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR",
        "EXPRESS_ONEZONE", "OUTPOSTS",
    ),
}  # fmt: skip


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
