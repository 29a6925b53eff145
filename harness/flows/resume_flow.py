"""What ``resume_path()`` answers in the step, in its subprocesses, and in ranks that are started again."""

import json
import os
import subprocess
import sys

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step

ASK = """
import json, sys
from metaflow import Checkpoint
path, info = Checkpoint().resume_path(*sys.argv[1:]), Checkpoint().resume_info()
assert (path is None) == (info is None)
print(json.dumps(path))
"""


def ask(*arguments, together=1, **env):
    """What so many subprocesses are answered that ask at the same time."""
    command = [sys.executable, "-c", ASK, *arguments]
    started = [
        subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True) for _ in range(together)
    ]
    return [json.loads(each.communicate()[0]) for each in started]


def write(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(path)


def why(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def short(path):
    return path and os.path.relpath(path, current.checkpoint.directory)


class ResumeFlow(FlowSpec):
    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        here = current.checkpoint
        if current.retry_count == 0:
            first = ask()
            write("out/model.ckpt")
            Checkpoint().save("out/model.ckpt", name="single")
            restart = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}
            # In a start of the ranks it does not change, whatever is saved meanwhile.
            started_again = ask(together=2, **restart)
            write("out/later.ckpt")
            Checkpoint().save("out/later.ckpt", name="single")
            started_again += ask(together=1, **restart)
            started_again += ask(together=1, **{**restart, "TORCHELASTIC_RESTART_COUNT": "2"})
            assert len(set(started_again)) == 2, started_again
            with open("first.json", "w") as file:
                names = [os.path.basename(path) for path in started_again]
                json.dump([first, here.resume_path(), here.resume_path("*"), ask(), names], file)
            os._exit(1)
        if current.retry_count == 1:
            with open("second.json", "w") as file:
                paths = [here.resume_path(), *ask(together=2), here.resume_path("*.ckpt")]
                json.dump([[short(path) for path in paths], here.info.name], file)
            for name in ("all/a.pt", "all/b.pt", "all/deep/last.ckpt"):
                write(name)
            here.save("all")
            raise ValueError("as intended")
        with open("first.json") as first, open("second.json") as second:
            self.seen = {"first": json.load(first), "second": json.load(second)}
        self.seen["directory"] = [here.resume_path() == here.directory, ask() == [here.directory]]
        patterns = ("a.pt", "deep", "**/*.ckpt", "*.pt", "none*", "/etc/*", "../*", "")
        self.seen["patterns"] = {pattern: why(lambda p=pattern: short(here.resume_path(p))) for pattern in patterns}
        self.seen["info"] = [here.resume_info().name, here.resume_info().pathspec == current.pathspec]
        here.load(here.list(name="single")[0])
        self.seen["info"].append(here.resume_info() == here.list(name="single")[0])
        self.seen["loaded"] = [short(here.resume_path()), [short(path) for path in ask()]]
        here.refresh_directory()
        self.seen["fresh"] = [here.resume_path(), ask()]
        here.load(here.list(name="single")[1])
        here.cleanup()
        self.seen["cleaned"] = why(here.resume_path)
        here.refresh_directory()
        self.next(self.end)

    @step
    def end(self):
        self.outside = why(lambda: Checkpoint().resume_path())


if __name__ == "__main__":
    ResumeFlow()
