"""Checkpoints in the hands of metaflow-checkpoint's other decorators and functions."""

from metaflow import FlowSpec, checkpoint, current, load_model, model, step
from seen import outcome, saw, tree, write


class ModelFlow(FlowSpec):
    @model
    @checkpoint(show_card=False)
    @step
    def start(self):
        write("checkpoint_dir", {"config.json": "{}", "weights.txt": "weights"})
        self.checkpoint_foo = current.checkpoint.save("checkpoint_dir", metadata={"version": "2.0"})
        self.packed = current.checkpoint.save("checkpoint_dir", name="trained_model", latest=True, storage_format="tar")
        self.trained = current.model.save(
            "checkpoint_dir", label="trained", metadata={"checkpoint": self.packed["key"]}
        )
        self.model_key = self.checkpoint_foo["key"]
        self.next(self.serve)

    @model(load=["checkpoint_foo", ("packed", "./here"), "model_key"])
    @checkpoint(load_policy="none", show_card=False)
    @step
    def serve(self):
        loaded = current.model.loaded
        saw("@model(load=)", {name: tree(loaded[name]) for name in ("checkpoint_foo", "packed", "model_key")})
        saw("path", loaded["packed"])
        saw("info", [loaded.info["checkpoint_foo"]["metadata"], loaded.info["packed"]["name"]])
        saw("current.model.load(key)", tree(current.model.load(self.trained["metadata"]["checkpoint"])))
        saw("current.model.load(reference)", tree(current.model.load(self.checkpoint_foo)))
        load_model(self.checkpoint_foo, "by-load-model")
        saw("load_model(reference)", tree("by-load-model"))
        saw("current.checkpoint.load(model)", outcome(current.checkpoint.load, self.trained)[0])

        # In the process that saved, and what list() gives.
        write(current.checkpoint.directory, {"state": "fresh"})
        fresh = current.checkpoint.save()
        saw("just saved", [outcome(load_model, fresh, "fresh"), tree("fresh")])
        (listed,) = current.checkpoint.list()
        saw("just listed", [outcome(load_model, listed, "listed"), tree("listed")])
        saw("just listed, current.model.load", tree(current.model.load(listed)))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ModelFlow()
