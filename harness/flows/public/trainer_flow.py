"""Hugging Face's Trainer: it writes into `current.checkpoint.directory` and rotates that; a callback saves it."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, huggingface_hub, model, retry, step


class TrainerFlow(FlowSpec):
    steps = Parameter("steps", default=10)

    @huggingface_hub
    @step
    def start(self):
        # Nothing is downloaded here.
        import huggingface_hub
        from trainer_training import make_instead_of_downloading

        huggingface_hub.snapshot_download = make_instead_of_downloading
        self.hf_model_checkpoint = current.huggingface_hub.snapshot_download(
            repo_id="nobody/counts-tokens",
            ignore_patterns=["*.bin"],
        )
        self.next(self.finetune)

    @model(load=["hf_model_checkpoint"])
    @checkpoint
    @retry(times=3)
    @step
    def finetune(self):
        from trainer_training import MetaflowCheckpointCallback, train, weights_of

        resuming_checkpoint_path = None
        if current.checkpoint.is_loaded:
            resuming_checkpoint_path = current.checkpoint.directory
        callback = MetaflowCheckpointCallback()
        network, self.losses, self.resumed_at = train(
            base_model_path=current.model.loaded["hf_model_checkpoint"],
            output_dir=current.checkpoint.directory,
            resuming_checkpoint_path=resuming_checkpoint_path,
            steps=self.steps,
            callback=callback,
        )
        self.weights = weights_of(network)
        self.best_checkpoint = callback.latest_checkpoint
        network.save_pretrained("final")
        self.model = current.model.save("final", label="tuned")
        self.next(self.end)

    @model(load="best_checkpoint")
    @step
    def end(self):
        from trainer_training import test

        self.files = sorted(os.listdir(current.model.loaded["best_checkpoint"]))
        self.tested = test(current.model.loaded["best_checkpoint"])


if __name__ == "__main__":
    TrainerFlow()
