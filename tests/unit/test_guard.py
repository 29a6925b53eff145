"""Leases on one file from two sides: whoever writes waits for one copy, and for nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, which has the signal blocked in every thread.
_CODE = """
import os, signal, sys
from async_ckpt.agent.guard import Guard, GuardedFile
from async_ckpt.capture.habits import Habits
from async_ckpt.capture.copy_speed import CopySpeed
from async_ckpt.config import Config
from async_ckpt.capture import lease

signal.pthread_sigmask(signal.SIG_BLOCK, [lease.LEASE_SIGNAL])
folder, same = sys.argv[1], sys.argv[2] == "same"
captured, loaded = folder + "/captured", folder + "/loaded"
with open(captured, "wb") as file:
    file.write(b"weights")
os.link(captured, loaded)
status = os.stat(captured)
habits = Habits(folder + "/rewritten", folder + "/work", "Flow/train")
told = lambda identity, path, why: print(path, why or "private", flush=True)
guard = Guard(told, print, lambda: None, habits, CopySpeed(), Config())

def held(fd):
    return GuardedFile(os.dup(fd), captured, 7, status.st_mtime_ns, original=loaded)

savers = os.open(captured, os.O_RDONLY)
loads = savers if same else os.open(captured, os.O_RDONLY)
for fd in {savers, loads}:
    assert lease.take(fd)
guard.add("0.x.0", "w", held(savers))
guard.add("0.x.0", "w", held(loads))
assert guard.count() == 1 and guard.stands("0.x.0", "w") and not lease.is_breaking(loads)
# Both descriptors stay open here, as in the processes that took the leases.
with open(loaded, "r+b") as file:
    file.write(b"W")
assert open(captured, "rb").read() == b"weights"
guard.stop()
"""


def write_to_a_file_with_two_leases(folder: Path, whose: str) -> str:
    command = [sys.executable, "-c", _CODE, str(folder), whose]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_lease_that_is_sent_again_is_one_lease(tmp_path: Path) -> None:
    assert write_to_a_file_with_two_leases(tmp_path, "same") == "w private\n"


def test_a_loads_lease_takes_the_place_of_the_savers(tmp_path: Path) -> None:
    assert write_to_a_file_with_two_leases(tmp_path, "another") == "w private\n"


# The same, but with the copying in our hands: how fast it goes, and what is copied.
_PRELUDE = """
import os, signal, sys, threading
from async_ckpt.agent import guard as guards
from async_ckpt.agent.guard import Guard, GuardedFile
from async_ckpt.capture.habits import Habits
from async_ckpt.capture.copy_speed import CopySpeed
from async_ckpt.config import Config
from async_ckpt.capture import lease, private

signal.pthread_sigmask(signal.SIG_BLOCK, [lease.LEASE_SIGNAL])
folder = sys.argv[1]
MIB = 1 << 20
guards._PIECE_BYTES = MIB
real_copy, copied = private.copy_range, []
private.clone = lambda source, target, size: False
outcomes, said = {}, []
done = threading.Condition()

def on_private(identity, path, why):
    with done:
        outcomes[path] = why or "private"
        done.notify_all()

def wait_for(condition):
    with done:
        assert done.wait_for(condition, 60), outcomes

def make(**settings):
    habits = Habits(folder + "/rewritten", folder + "/work", "Flow/train")
    return Guard(on_private, said.append, lambda: None, habits, CopySpeed(), Config(**settings))

def content(name, size):
    return (name.encode() * size)[:size]

def capture(name, size, trainer=None):
    trainer = trainer or folder + "/" + name
    with open(trainer, "wb") as file:
        file.write(content(name, size))
    path = folder + "/captured-" + name.replace("/", "-")
    os.link(trainer, path)
    fd = os.open(path, os.O_RDONLY)
    assert lease.take(fd)
    return trainer, path, GuardedFile(fd, path, size, os.fstat(fd).st_mtime_ns, trainer, folder)

def write(trainer):
    with open(trainer, "r+b") as file:
        file.write(b"later")

def left():
    return sorted(name for name in os.listdir(folder) if name[:1].isdigit())
"""


def run(folder: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_EVERYTHING_AHEAD = "copy_away_s=0.0, min_free_bytes=0"


def test_a_file_that_takes_long_is_copied_before_anybody_comes_and_only_the_rest_is_waited_for(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
half, go = threading.Event(), threading.Event()
def copy(source, target, count, offset):
    copied.append(offset)
    if len(copied) == 3:
        half.set()
        assert go.wait(60)
    return real_copy(source, target, count, offset)
private.copy_range = copy
guard = make({_EVERYTHING_AHEAD})
trainer, path, held = capture("w", 5 * MIB)
guard.add("0.x.0", "w", held)
guard.look_ahead("0.x.0")
assert half.wait(60)
writer = threading.Thread(target=write, args=[trainer])
writer.start()
while not lease.is_breaking(held.fd):
    pass
assert outcomes == {{}}
go.set()
writer.join(60)
wait_for(lambda: outcomes)
assert outcomes == {{"w": "private"}}
assert copied == [0, MIB, 2 * MIB, 3 * MIB, 4 * MIB]
assert open(path, "rb").read() == content("w", 5 * MIB)
assert open(trainer, "rb").read(5) == b"later"
assert left() == [] and guard.count() == 0
guard.stop()
""",
    )


@pytest.mark.parametrize("least", ["MIB", "5 * MIB"])
def test_a_large_file_is_said_to_be_waited_for_from_when_a_writer_comes_until_it_is_copied(
    tmp_path: Path, least: str
) -> None:
    run(
        tmp_path,
        f"""
from async_ckpt.agent import guard as module
module.PACE_HELD_FILE_BYTES = {least}
seen = []
def copy(source, target, count, offset):
    seen.append(guard.is_waited_for)
    return real_copy(source, target, count, offset)
private.copy_range = copy
guard = make()
for number in range(2):
    trainer, path, held = capture(f"w{{number}}", 3 * MIB)
    guard.add(f"0.x.{{number}}", "w", held)
    guard.look_ahead(f"0.x.{{number}}")
    if not number:
        assert not guard.is_waited_for
        write(trainer)  # The second time it is expected.
    wait_for(lambda: outcomes)
    outcomes.clear()
    while guard.is_waited_for:
        pass
assert seen == [{least} <= 3 * MIB] * len(seen) and len(seen) == 6, seen
lease.BREAK_TIME_S = 0  # It takes longer than the kernel holds up anybody.
trainer, path, held = capture("w2", 3 * MIB)
guard.add("0.x.2", "w", held)
guard.look_ahead("0.x.2")
wait_for(lambda: outcomes)
assert seen[6:] == [False] * 3
guard.stop()
""",
    )


def test_a_file_that_takes_long_is_a_file_of_its_own_if_nobody_comes(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
guard = make({_EVERYTHING_AHEAD})
trainer, path, held = capture("w", 3 * MIB)
guard.add("0.x.0", "w", held)
guard.look_ahead("0.x.0")
wait_for(lambda: outcomes)
assert outcomes == {{"w": "private"}} and not os.path.samefile(trainer, path)
os.close(os.open(trainer, os.O_WRONLY | os.O_NONBLOCK))
guard.stop()
""",
    )


def test_a_file_that_is_quick_or_that_only_we_have_is_left_a_link(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
for settings in {}, {"copy_away_s": 0.0}:
    guard = make(min_free_bytes=0, **settings)
    trainer, path, held = capture("w", MIB)
    if settings:
        os.unlink(trainer)
    guard.add("0.x.0", "w", held)
    guard.look_ahead("0.x.0")
    guard.look_ahead("no such checkpoint")
    # One that is copied after it, as it is known to be rewritten.
    trainer, path, held = capture("other", MIB)
    guard._habits.learn(trainer)
    guard.add("0.x.1", "other", held)
    guard.look_ahead("0.x.1")
    wait_for(lambda: outcomes)
    assert outcomes == {"other": "private"} and guard.count() == 1
    guard.stop()
    for name in os.listdir(folder):  # Nobody answers any more who writes to what is leased.
        if name != "rewritten":
            os.unlink(f"{folder}/{name}")
    outcomes.clear()
""",
    )


def test_files_of_several_writers_are_copied_at_one_time(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
both = threading.Barrier(2)
def copy(source, target, count, offset):
    both.wait(60)
    return real_copy(source, target, count, offset)
private.copy_range = copy
guard = make()
files = [capture(name, MIB) for name in "ab"]
for name, (_, _, held) in zip("ab", files):
    guard.add("0.x.0", name, held)
writers = [threading.Thread(target=write, args=[trainer]) for trainer, _, _ in files]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join(60)
wait_for(lambda: len(outcomes) == 2)
assert outcomes == {"a": "private", "b": "private"}
for name, (_, path, _) in zip("ab", files):
    assert open(path, "rb").read() == content(name, MIB)
guard.stop()
""",
    )


def test_a_copy_that_nobody_needs_any_more_is_given_up(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
begun, go = threading.Event(), threading.Event()
def copy(source, target, count, offset):
    copied.append(offset)
    begun.set()
    assert go.wait(60)
    return real_copy(source, target, count, offset)
private.copy_range = copy
guard = make({_EVERYTHING_AHEAD})
trainer, path, held = capture("w", 9 * MIB)
guard.add("0.x.0", "w", held)
guard.look_ahead("0.x.0")
assert begun.wait(60)
assert guard.let_go("0.x.0") == []
go.set()
wait_for(lambda: outcomes)
assert copied == [0] and left() == [] and os.path.samefile(trainer, path)
os.close(os.open(trainer, os.O_WRONLY | os.O_NONBLOCK))
guard.stop()
""",
    )


def test_what_was_rewritten_once_is_copied_early_by_the_next_agent_too(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
os.makedirs(folder + "/work/0-abc/step-1")
os.makedirs(folder + "/work/1-xyz/step-20")
guard = make()
trainer, path, held = capture("w", MIB, folder + "/work/0-abc/step-1/w7.pt")
guard.add("0.x.0", "w", held)
write(trainer)
wait_for(lambda: outcomes)
guard.stop()
outcomes.clear()
later = make()
other = capture("v", MIB, folder + "/work/1-xyz/step-20/v.pt")
later.add("1.x.0", "v", other[2])
later.look_ahead("1.x.0")
trainer, path, held = capture("x", MIB, folder + "/work/1-xyz/step-20/w31.pt")
later.add("1.x.1", "x", held)
later.look_ahead("1.x.1")
wait_for(lambda: outcomes)
later.stop()
assert outcomes == {"x": "private"} and later.count() == 1
assert open(folder + "/rewritten").read() == "rewritten Flow/train/step-#/w#.pt\\n"
""",
    )


def test_without_room_for_copies_it_is_said_and_the_link_stays_until_somebody_comes(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
guards.is_short_of_disk = lambda folder, config, wanted: True
guard = make(copy_away_s=0.0)
trainer, path, held = capture("w", MIB)
guard.add("0.x.0", "w", held)
guard.look_ahead("0.x.0")
while not said:
    pass
assert "no room" in said[0] and "rename" in said[0] and outcomes == {}
write(trainer)
wait_for(lambda: outcomes)
assert outcomes == {"w": "private"} and open(path, "rb").read() == content("w", MIB)
guard.stop()
assert len(said) == 1
""",
    )


def test_a_disk_that_is_too_slow_for_what_is_saved_is_said_once(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
guard = make({_EVERYTHING_AHEAD})
guard.copy_speed.add(1000, 10.0)  # 100 bytes a second
for number in range(2):
    trainer, path, held = capture(f"w{{number}}", MIB)
    guard.add(f"0.x.{{number}}", f"w{{number}}", held)
    guard.look_ahead(f"0.x.{{number}}")
wait_for(lambda: len(outcomes) == 2)
guard.stop()
assert len(said) == 1 and "Write to a new name and rename it" in said[0] and "0 MB/s" in said[0]
""",
    )


def test_what_the_kernel_let_somebody_write_to_is_lost_not_torn(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
guard = make()
trainer, path, held = capture("w", MIB)
lease.release(held.fd)  # As the kernel does when the time is over.
os.utime(trainer, ns=(0, 0))
guard.add("0.x.0", "w", held)
wait_for(lambda: outcomes)
assert "rewritten" in outcomes["w"] and not os.path.exists(path) and left() == []
guard.stop()
""",
    )
