"""Names as people give them, and a few that nobody should."""

from metaflow import Checkpoint, FlowSpec, checkpoint, current, step
from seen import outcome, saw, tree, write

NAMES = [
    "run_7", "epoch-3-loss-0.25", "epoch=3-val_loss=0.25", "run.1", "Qwen2.5-7B", "v1.", ".hidden", "a b",
    "modèle-日本", "100%", "a:b", "latest", "metadata", "n" * 200, 7, 0.5,
]  # fmt: skip
BAD = [None, "", "a/b", "line\nbreak", "n" * 300]


class NamesFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        for name in NAMES + BAD:
            write(current.checkpoint.directory, {"name": "named"})
            kind, result = outcome(current.checkpoint.save, name=name)
            note = {"saved": kind if kind == "failed" else [result["name"], result["key"].count("/")]}
            if kind == "ok":
                for how, reference in (("by reference", result), ("by key", result["key"])):
                    with Checkpoint() as into:
                        kind, _ = outcome(into.load, reference)
                        note[how] = kind if kind == "failed" else tree(into.directory)
                entries = current.checkpoint.list(name=name)
                note["listed by name"] = result["key"] in [entry["key"] for entry in entries]
            saw(repr(name if len(str(name)) < 200 else len(name)), note)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    NamesFlow()
