"""A training loop that saves, or has something else upload, while its steps are timed: ``stress.bench.interference``,
``stress.bench.pace``.

A step is half pure Python and half NumPy (or PyTorch), together about 6 ms. What a trainer waits for is in its steps:
a step that saves contains the save.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time

from commands import is_ours, write
from metaflow import current

_STEP_S = 0.006
_FILES, _NOISE = 4, 1 << 20

#: A neighbour of the loop: keeps a core busy until its standard input ends.
_BURN = """
import sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0))).start()
while True:
    sum(range(1000))
"""


def numpy_work():
    import numpy

    matrix = numpy.random.default_rng(0).random((192, 192), dtype=numpy.float32)
    return lambda: matrix @ matrix


def torch_work():
    import torch

    torch.set_num_threads(1)
    matrix = torch.rand(192, 192)
    return lambda: matrix @ matrix


def python_work():
    return sum(number * number for number in range(100))


def repeats(work, seconds):
    """How often ``work`` fits into ``seconds``; the best of some tries, since others use the machine as well."""
    best = 0
    for _ in range(10):
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            work()
            count += 1
        best = max(best, count)
    return best


def renew(path, size):
    """Other content in every chunk, so that no store has it already: a few bytes in each MiB."""
    fd = os.open(path, os.O_WRONLY)
    for offset in range(0, size, _NOISE):
        os.pwrite(fd, os.urandom(16)[: size - offset], offset)
    os.close(fd)


class Boto3:
    """A thread that uploads files with boto3 as its documentation has it, again and again."""

    def __init__(self, paths):
        self.bytes, self._over = 0, False
        self._thread = threading.Thread(target=self._run, args=(paths,))
        self._thread.start()

    def _run(self, paths):
        import boto3

        client = boto3.client("s3", endpoint_url=os.environ["METAFLOW_S3_ENDPOINT_URL"])
        bucket = os.environ["METAFLOW_DATASTORE_SYSROOT_S3"].removeprefix("s3://").partition("/")[0]
        with contextlib.suppress(InterruptedError):
            for number in itertools.count():
                path = paths[number % len(paths)]
                client.upload_file(path, bucket, f"boto3/{number % len(paths)}", Callback=self._sent)

    def _sent(self, count):
        self.bytes += count
        if self._over:
            raise InterruptedError

    def stop(self):
        sent, self._over = self.bytes, True
        self._thread.join()
        return sent


class Boto3Saves:
    """Each save uploads its file with boto3 in a thread of its own."""

    def __init__(self, paths):
        self._paths, self._threads = paths, []
        self.seconds = []

    def save(self):
        path = self._paths[len(self._threads) % len(self._paths)]
        self._threads.append(threading.Thread(target=self._run, args=(path, time.monotonic())))
        self._threads[-1].start()

    def _run(self, path, began):
        import boto3

        client = boto3.client("s3", endpoint_url=os.environ["METAFLOW_S3_ENDPOINT_URL"])
        bucket = os.environ["METAFLOW_DATASTORE_SYSROOT_S3"].removeprefix("s3://").partition("/")[0]
        client.upload_file(path, bucket, f"boto3/{os.path.basename(path)}")
        self.seconds.append(time.monotonic() - began)

    def look(self):
        """Whether something is under way."""
        return any(thread.is_alive() for thread in self._threads)

    def end(self):
        for thread in self._threads:
            thread.join()


class TimedSaves:
    """Checkpoints of one file each, in turn, and how long each takes until it is in the store."""

    def __init__(self, paths):
        self._paths, self._count, self._under_way = paths, 0, []
        self.seconds = []

    @property
    def next_path(self):
        return self._paths[self._count % len(self._paths)]

    def save(self):
        path = self.next_path
        self._count += 1
        began = time.monotonic()
        reference = current.checkpoint.save(path)
        if is_ours():
            self._under_way.append((began, reference))
        else:
            self.seconds.append(time.monotonic() - began)

    def look(self):
        """Whether something is under way."""
        for item in list(self._under_way):
            if item[1].done():
                self._under_way.remove(item)
                self.seconds.append(time.monotonic() - item[0])
        return bool(self._under_way)

    def end(self):
        if is_ours():
            current.checkpoint.flush()
        self.look()


class Saves:
    """Checkpoints of one file each, in turn; a file gets other content once its last checkpoint is in the store."""

    def __init__(self, paths, size):
        self._paths, self._size = paths, size
        self._under_way = []
        self.count = 0

    @property
    def next_path(self):
        return self._paths[self.count % len(self._paths)]

    def save(self):
        path = self.next_path
        self._under_way.append(current.checkpoint.save(path))
        self.count += 1

    def is_due(self):
        """Whether fewer than two are under way: so the file that comes next is none of theirs."""
        self._under_way = [reference for reference in self._under_way if not reference.done()]
        return len(self._under_way) < 2

    def sent(self):
        pending = current.checkpoint.status()["pending_bytes"] if is_ours() else 0
        return self.count * self._size - pending


class Commands:
    def __init__(self):
        self._paths, self._size = [], 0

    def prepare(self, size, torch):
        """Write the files, and find out how much work a step is."""
        noise = os.urandom(_NOISE)
        self._size = size
        self._paths = [os.path.join(current.checkpoint.directory, f"{number}.bin") for number in range(_FILES)]
        for path in self._paths:
            write(path, size, noise)
        self._work = torch_work() if torch else numpy_work()
        return {"native": repeats(self._work, _STEP_S / 2), "python": repeats(python_work, _STEP_S / 2)}

    def train(self, uploads, steps, every, native, python, busy):
        """Run ``steps`` steps of so much work each.

        ``uploads``: ``"none"``, ``"saves"`` (as soon as the one before the last is in the store), ``"every"`` (a save
        each ``every`` steps) or ``"boto3"``. ``busy``: with another loop on the machine.
        """
        burner = subprocess.Popen([sys.executable, "-c", _BURN], stdin=subprocess.PIPE) if busy else None
        boto3 = Boto3(self._paths) if uploads == "boto3" else None
        saves = Saves(self._paths, self._size)
        times = []
        began = time.perf_counter()
        for number in range(steps):
            # Asking is the benchmark's part, not the trainer's: it is not in the step.
            due = uploads == "saves" and not number % 10 and saves.is_due()
            due = due or (uploads == "every" and not number % every)
            if due:
                renew(saves.next_path, self._size)
            before = time.perf_counter()
            if due:
                saves.save()
            for _ in range(native):
                self._work()
            for _ in range(python):
                python_work()
            times.append(time.perf_counter() - before)
        total = time.perf_counter() - began
        sent = boto3.stop() if boto3 else saves.sent() if saves.count else 0
        if burner:
            burner.communicate()
        return {"times": times, "total": total, "sent": sent, "saves": saves.count}

    def train_for(self, uploads, seconds, every, native, python, busy):
        """Run steps of so much work each for so many seconds, with a save every so many, the first one at once.

        ``uploads``: ``"none"``, ``"saves"``, or ``"boto3"``; ``busy``: with another loop on the machine. *seconds* of
        what is returned are those from each save until it is in the store; *beside*: whether each step began while
        something was under way.
        """
        burner = subprocess.Popen([sys.executable, "-c", _BURN], stdin=subprocess.PIPE) if busy else None
        saves = Boto3Saves(self._paths) if uploads == "boto3" else TimedSaves(self._paths)
        step = current.checkpoint.step if is_ours() and uploads == "saves" else lambda: None
        times, beside, is_under_way = [], [], False
        next_save = began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            if not len(times) % 20:
                is_under_way = saves.look()  # The benchmark's part, not the trainer's.
            beside.append(is_under_way)
            due = uploads != "none" and now >= next_save
            if due and uploads == "saves":
                renew(saves.next_path, self._size)
            before = time.perf_counter()
            if due:
                next_save += every
                saves.save()
                is_under_way = True
            for _ in range(native):
                self._work()
            for _ in range(python):
                python_work()
            step()
            times.append(time.perf_counter() - before)
        if burner:
            burner.communicate()
        pace = current.checkpoint.status()["pace"] if is_ours() and uploads == "saves" else None
        saves.end()
        return {"times": times, "beside": beside, "seconds": saves.seconds, "pace": pace}

    def drain(self):
        if is_ours():
            current.checkpoint.flush()
        return {}
