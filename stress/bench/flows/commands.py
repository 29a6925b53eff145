"""What a task of ``task_flow.py`` can be told: write files as a trainer does, save, wait, load."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time

from metaflow import current

_PIECE = 1 << 20


def write(path, size, noise):
    """A new file with content of its own, under a temporary name and renamed, as careful trainers do."""
    with open(path + ".tmp", "wb", buffering=0) as file:
        for offset in range(0, size, _PIECE):
            stamp = os.urandom(16)[: size - offset]
            file.write(stamp + noise[len(stamp) : min(_PIECE, size - offset)])
    os.rename(path + ".tmp", path)


def is_ours():
    """Whether saves go on in the background (the incumbent's do not)."""
    return hasattr(current.checkpoint, "flush")


def flush():
    """Wait until everything is in the store. The incumbent's ``save()`` did so."""
    if is_ours():
        current.checkpoint.flush()


class Commands:
    def __init__(self):
        self.noise = os.urandom(_PIECE)
        self.directory = current.checkpoint.directory
        self.saved = []

    def write(self, files, folder=""):
        """``files``: relative path -> size in bytes."""
        for path, size in files.items():
            target = os.path.join(self.directory, folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            write(target, size, self.noise)
        return {}

    def save(self, folder=""):
        before = time.perf_counter()
        self.saved.append(current.checkpoint.save(os.path.join(self.directory, folder)))
        return {"seconds": time.perf_counter() - before, "reference": dict_of(self.saved[-1])}

    def drain(self):
        before = time.perf_counter()
        flush()
        return {"seconds": time.perf_counter() - before}

    # -- history -------------------------------------------------------------------------------------------------

    def save_many(self, count, size):
        """So many checkpoints of one new small file each; seconds in each ``save()``, and the last reference."""
        blocked = []
        for _ in range(count):
            write(os.path.join(self.directory, "state"), size, self.noise)
            blocked.append(self.save()["seconds"])
        return {"blocked": blocked, "reference": dict_of(self.saved[-1])}

    def latest(self, count):
        """Ask the store for this task's newest, as a retry does."""
        return {"seconds": [self._latest() for _ in range(count)]}

    def list_all(self, where):
        """List this task's checkpoints; seconds, and how many they are."""
        given = {"metadata": {"loss": ("<", 0.3)}} if where else {}
        before = time.perf_counter()
        found = list(current.checkpoint.list(**given))
        return {"seconds": time.perf_counter() - before, "count": len(found)}

    def _latest(self):
        checkpoint = current.checkpoint
        before = time.perf_counter()
        if is_ours():
            found = next(checkpoint._checkpointer.loader.candidates("fresh"))["key"]
        else:
            found = checkpoint._default_checkpointer._checkpointer._get_latest_checkpoint(safe=True).key
        seconds = time.perf_counter() - before
        assert found
        return seconds

    # -- restores ------------------------------------------------------------------------------------------------

    def load(self):
        """Load what was saved last into a new directory; seconds."""
        destination = tempfile.mkdtemp(dir=os.path.dirname(self.directory))
        before = time.perf_counter()
        current.checkpoint.load(dict_of(self.saved[-1]), destination)
        seconds = time.perf_counter() - before
        shutil.rmtree(destination)
        return {"seconds": seconds}

    def hold(self):
        """Stop the uploaders, so that what is saved stays on this machine."""
        self._signal(signal.SIGSTOP)
        return {}

    def release(self):
        self._signal(signal.SIGCONT)
        return {}

    def _signal(self, number):
        agent = current.checkpoint.status()["pid"]
        for pid in descendants(agent):
            os.kill(pid, number)

    # -- a queue -------------------------------------------------------------------------------------------------

    def backlog(self, count, size):
        """So many new files saved as fast as the loop can.

        Answers, in seconds since the first save began: when each save returned, and when each was in the store;
        ``blocked``: how long each ``save()`` took.
        """
        files = [os.path.join(self.directory, f"{number}.bin") for number in range(count)]
        for path in files:
            write(path, size, self.noise)
        returned, durable, blocked, references = [], [], [], []
        admitted = threading.Semaphore(0)
        began = time.perf_counter()

        def follow():
            for number in range(count):
                admitted.acquire()
                if is_ours():
                    references[number].wait()
                durable.append(time.perf_counter() - began)

        follower = threading.Thread(target=follow)
        follower.start()
        for path in files:
            before = time.perf_counter()
            references.append(current.checkpoint.save(path))
            blocked.append(time.perf_counter() - before)
            returned.append(time.perf_counter() - began)
            admitted.release()
        follower.join()
        flush()
        return {"returned": returned, "durable": durable, "blocked": blocked}

    def raw(self, count, size):
        """The store's own rate in this process: new files put side by side, without spool, agent and metadata."""
        from async_ckpt.capture.content import CapturedFile
        from async_ckpt.system.concurrency import for_each
        from async_ckpt.task.lookup import run_with_store

        mine = current.checkpoint._checkpointer
        files = [os.path.join(self.directory, f"raw-{number}") for number in range(count)]
        for path in files:
            write(path, size, self.noise)

        async def put_all(store):
            async def put(path):
                source = CapturedFile(path, size)
                with contextlib.closing(source):
                    await store.put_content(f"raw/{os.path.basename(path)}", source)

            before = time.perf_counter()
            await for_each(files, mine.config.max_uploads, put)
            return time.perf_counter() - before

        return {"seconds": run_with_store(mine.spool.store, mine.config, put_all)}


def dict_of(reference):
    """The incumbent returns an object or a dict, by version."""
    return reference.to_dict() if hasattr(reference, "to_dict") else dict(reference)


def descendants(pid):
    """Processes started by ``pid``, and by those."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == pid:
                found += [int(name), *descendants(int(name))]
    return found
