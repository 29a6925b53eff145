"""Lightning: its own ModelCheckpoint, which saves each file it writes, while Lightning removes older ones."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, model, retry, step


class LightningFlow(FlowSpec):
    epochs = Parameter("epochs", default=5)

    @model
    @retry(times=3)
    @checkpoint
    @step
    def start(self):
        from lightning_training import MetaflowCheckpoint, train

        checkpointdir = current.checkpoint.directory
        best_cb = MetaflowCheckpoint(
            monitor="val_loss",
            dirpath=checkpointdir,
            filename="loss-checkpoint-{epoch}-{step}",
            save_top_k=1,
            mode="min",
            name="val_loss_best",
            set_latest=True,
        )
        acc_cb = MetaflowCheckpoint(
            monitor="val_acc",
            dirpath=checkpointdir,
            filename="acc-checkpoint-{epoch}-{step}",
            save_top_k=3,
            mode="max",
            name="val_acc_top5",
            set_latest=False,
        )
        checkpoint_path = None
        if current.checkpoint.is_loaded:
            filename = current.checkpoint.info.metadata["file_names"][0]
            checkpoint_path = os.path.join(checkpointdir, filename)
        self.losses, self.weights = train(checkpoint_path, callbacks=[best_cb, acc_cb], num_epochs=self.epochs)

        best_model_path = best_cb.best_model_path
        self.file_name = os.path.basename(best_model_path)
        self.trained_model = current.model.save(
            best_model_path,
            label="best_model",
            metadata={"file_name": self.file_name, "score": best_cb.best_model_score.tolist()},
        )
        self.next(self.end)

    @model(load="trained_model")
    @step
    def end(self):
        from lightning_training import test

        self.tested = test(os.path.join(current.model.loaded["trained_model"], self.file_name))


if __name__ == "__main__":
    LightningFlow()
