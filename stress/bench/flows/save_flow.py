"""One task that saves when it is told to; run by ``stress.bench.save`` in either package's environment.

It imports nothing of this repository. Commands and answers are JSON lines on the Unix socket ``$BENCH_SOCKET``.
"""

import json
import os
import socket
import time

from metaflow import FlowSpec, checkpoint, current, step

_PIECE = 1 << 20


class Trainer:
    """Writes ``count`` files of ``size`` bytes, new content each time, the usual ways."""

    def __init__(self, directory, count, size):
        self.directory, self.count, self.size = directory, count, size
        self.noise = os.urandom(_PIECE)
        self.round = 0
        for index in range(count):
            self._write(self._path(index), index)

    def rewrite(self, in_place, limit):
        """Rewrite up to ``limit`` files, the next ones each time. Returns the seconds spent in ``open(path, "wb")``."""
        self.round += 1
        held = 0.0
        for number in range(min(self.count, limit)):
            path = self._path((self.round * limit + number) % self.count)
            if in_place:
                held += self._write(path, number)
            else:
                self._write(path + ".tmp", number)
                os.rename(path + ".tmp", path)
        return held

    def _path(self, index):
        return os.path.join(self.directory, f"{index}.bin")

    def _write(self, path, number):
        before = time.perf_counter()
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - timed
        held = time.perf_counter() - before
        with file:
            stamp = b"%016d" % (self.round * 1000003 + number)
            for offset in range(0, self.size, _PIECE):
                file.write(stamp + self.noise[len(stamp) : min(_PIECE, self.size - offset)])
        return held


class Commands:
    def __init__(self):
        self.trainer = None

    def prepare(self, count, size):
        self.trainer = Trainer(current.checkpoint.directory, count, size)
        return {}

    def open_alone(self, limit):
        """How long ``open("wb")`` takes when nothing was saved."""
        return {"held": self.trainer.rewrite(True, limit)}

    def saves(self, count, in_place, limit, seconds, pause):
        """Rewrite and save, ``count`` times or for ``seconds``; opens are timed after a save."""
        blocked, held = [], []
        end = time.monotonic() + seconds
        self.trainer.rewrite(in_place, limit)
        while True:
            time.sleep(pause)
            before = time.perf_counter()
            current.checkpoint.save(metadata={"round": self.trainer.round})
            blocked.append(time.perf_counter() - before)
            last = len(blocked) == count or time.monotonic() > end
            if in_place or not last:
                held.append(self.trainer.rewrite(in_place, limit))
            if last:
                return {"blocked": blocked, "held": held}

    def drain(self):
        """Wait until everything is in the store (the incumbent's save() did so)."""
        before = time.perf_counter()
        if hasattr(current.checkpoint, "flush"):
            current.checkpoint.flush()
        return {"seconds": time.perf_counter() - before}


class BenchSave(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        commands = Commands()
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(os.environ["BENCH_SOCKET"])
            with channel.makefile("rw") as lines:
                for line in lines:
                    command = json.loads(line)
                    answer = getattr(commands, command.pop("op"))(**command)
                    lines.write(json.dumps(answer) + "\n")
                    lines.flush()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BenchSave()
