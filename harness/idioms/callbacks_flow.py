"""The callbacks of metaflow-checkpoint's examples, in the step and in a process that it starts; killed, and retried."""

import os
import signal
import subprocess
import sys

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step
from seen import saw, told, tree, write
from trainer import KerasCallback, LightningCallback, TrainerCallback


class CallbacksFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @step
    def start(self):
        directory = current.checkpoint.directory
        if current.checkpoint.is_loaded:
            info = current.checkpoint.info
            filename = info.metadata["file_names"][0]
            with open(os.path.join(directory, filename)) as file:
                saw("resumed", [info.name, filename, file.read(), tree(directory)])
            saw("attempt of Checkpoint().save()", info.attempt)
            saw("info", [info.pathspec.split("/")[0], info.metadata])
        best = LightningCallback("val_loss_best", set_latest=False)
        last = LightningCallback("last")
        for epoch in range(2):
            name = f"loss-checkpoint-epoch={epoch}-step={100 * epoch}.ckpt"
            write(directory, {name: f"epoch {epoch} of attempt {current.retry_count}"})
            last.save(os.path.join(directory, name), {"epoch": epoch})
            best.save(os.path.join(directory, name), {"epoch": epoch, "callback_info": {"monitor": None}})
        if current.retry_count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        saw("lightning", [told(callback.latest_checkpoint, "version_id", "attempt") for callback in (best, last)])

        saw("versions of two objects", [callback.latest_checkpoint["version_id"] for callback in (last, best)])

        write("model_checkpoints", {"checkpoint_3.keras": "keras"})
        saw("keras", told(KerasCallback().save("model_checkpoints/checkpoint_3.keras", 3), "version_id", "attempt"))

        trainer = TrainerCallback()
        self.saved = [trainer.on_save("out", step) for step in (500, 1000, 1500)]
        saw("trainer", [told(reference, "version_id") for reference in self.saved])
        subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "trainer.py")], check=True)
        self.next(self.end)

    @step
    def end(self):
        for reference in self.saved:
            with Checkpoint() as loaded:
                loaded.load(reference)
                saw("loaded in the next step", tree(loaded.directory))


if __name__ == "__main__":
    CallbacksFlow()
