"""Ways to load, and what they do to the directory."""

import os

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step
from seen import outcome, saw, told, tree, write


class LoadsFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @step
    def start(self):
        if current.retry_count == 0:
            write(current.checkpoint.directory, {"state": "attempt 0", "deep/er": "nested"})
            current.checkpoint.save(name="first", metadata={"epoch": 1})
            raise RuntimeError("The step's own error")
        self.info = current.checkpoint.info
        saw("info", [self.info.name, self.info.attempt, self.info.version_id, self.info.metadata, self.info.size])
        saw("info as a dict", told(self.info.to_dict()))
        write(current.checkpoint.directory, {"state": "attempt 1"})
        self.second = current.checkpoint.save(name="second")
        self.single = current.checkpoint.save(os.path.join(current.checkpoint.directory, "state"), name="single")
        self.next(self.end)

    @checkpoint(load_policy="none", show_card=False)
    @step
    def end(self):
        saw(
            "policy none",
            [current.checkpoint.is_loaded, current.checkpoint.info, os.listdir(current.checkpoint.directory)],
        )
        saw("info of the step before", [self.info.name, self.info.metadata, self.info.pathspec.split("/")[0]])

        write(current.checkpoint.directory, {"left over": "from before"})
        path = current.checkpoint.load(self.second)
        saw("what load returns", bool(path))
        saw("load empties the directory", tree(current.checkpoint.directory))
        saw("is_loaded afterwards", current.checkpoint.is_loaded)

        current.checkpoint.load(self.info)
        saw("load the info", tree(current.checkpoint.directory))
        current.checkpoint.load(self.info.key)
        saw("load by key", tree(current.checkpoint.directory))
        current.checkpoint.load(self.single)
        saw("load a single file", tree(current.checkpoint.directory))

        current.checkpoint.load(self.second, path="new/place")
        saw("load into a new place", tree("new/place"))
        write("old/place", {"left over": "from before"})
        current.checkpoint.load(self.second, "old/place")
        saw("load beside other files", tree("old/place"))
        saw("load over files of the same names", [outcome(current.checkpoint.load, self.second, "old/place")[0]])

        write(current.checkpoint.directory, {"x": "x"})
        current.checkpoint.refresh_directory()
        saw(
            "refresh_directory", [os.path.isdir(current.checkpoint.directory), os.listdir(current.checkpoint.directory)]
        )
        saw("task_identifier", current.checkpoint.task_identifier)
        saw("generate_key", Checkpoint().generate_key("best", 3).rpartition("/")[0])

        saw("no place to load into", "ValueError" in outcome(Checkpoint().load, self.second)[1])
        saw("nothing to save", "ValueError" in outcome(Checkpoint().save)[1])
        saw("no reference", outcome(current.checkpoint.load, 7)[0])
        saw("no key", outcome(current.checkpoint.load, "mf.checkpoints/nonsense")[0])
        saw("a key of what was never saved", outcome(current.checkpoint.load, self.second["key"] + "9")[0])


if __name__ == "__main__":
    LoadsFlow()
