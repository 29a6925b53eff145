"""DDP: the step starts torchrun, whose rank 0 saves from its own process; a retry hands on what it has loaded."""

import os
import subprocess
import sys

from metaflow import FlowSpec, Parameter, checkpoint, current, model, project, retry, step

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ddp_train.py")


@project(name="dist_testing")
class DdpFlow(FlowSpec):
    epochs = Parameter("epochs", default=5)

    @retry(times=4)
    @model
    @checkpoint
    @step
    def start(self):
        final_model_path = "final_model.pth"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost",
            "--nproc-per-node", "2", SCRIPT, "--epochs", str(self.epochs), "--model-save-path", final_model_path,
        ]  # fmt: skip
        self.resumed_at = None
        if current.checkpoint.is_loaded and "epoch" in current.checkpoint.info.metadata:
            print("Using checkpoint from the execution", current.checkpoint.info.pathspec)
            self.resumed_at = current.checkpoint.info.metadata["epoch"]
            command += ["--checkpoint-load-path", current.checkpoint.directory]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TASK_PROCESS": str(os.getpid()),
            "ATTEMPT": str(current.retry_count),
        }
        subprocess.run(command, check=True, env=environment)
        import torch

        result = torch.load(final_model_path)
        self.losses, self.weights = result["losses"], result["weights"]
        self.cifar_train_model = current.model.save(final_model_path, label="tiny", metadata={"epochs": self.epochs})
        self.next(self.end)

    @model(load="cifar_train_model")
    @step
    def end(self):
        import torch

        found = torch.load(os.path.join(current.model.loaded["cifar_train_model"], "final_model.pth"))
        self.tested = found["weights"]


if __name__ == "__main__":
    DdpFlow()
