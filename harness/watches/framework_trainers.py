"""Trainers as people write them, for ``watched_frameworks``: each saves by its framework's means, keeps few.

    python harness/watches/framework_trainers.py KIND DIR COUNT [--pause 1.0] [--keep 2] [--first N]
    python harness/watches/framework_trainers.py KIND --verify DIR STEP   (lines of "DIR STEP" on standard input)

Runs in an environment with the frameworks and imports nothing of this package. Every weight of step N is N. On standard
output it says, one JSON object a line, what it begins to save and what it has finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

SIZE = 200_000

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="torch", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="0")


def say(**fact: Any) -> None:
    print(json.dumps({"at": time.time(), **fact}), flush=True)


def digests(out: Path, files: list[Path], base: Path) -> dict[str, str]:
    """Of each file below, or at, what is named, by its path relative to ``base``."""
    found = [p for path in files for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()]
    return {str(p.relative_to(base)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def finished(out: Path, name: str, files: list[str], *, inside: bool = True) -> None:
    """Say that a checkpoint is finished. ``inside``: it is a directory, and its files are told as seen from there."""
    base = out / name if inside and (out / name).is_dir() else out
    say(finished=name, files=digests(out, [out / file for file in files], base))


class Trainer:
    """Saves step after step."""

    pattern = "*"

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.out, self.options = out, options

    def run(self) -> None:
        for step in range(self.options.first, self.options.first + self.options.count):
            say(begin=step)
            self.save(step)
            time.sleep(self.options.pause)

    def save(self, step: int) -> None:
        raise NotImplementedError

    def rotate(self, names: list[str]) -> None:
        """Remove all but the newest, as trainers do that have no means of their own."""
        for name in names[: -self.options.keep]:
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        """Whether the framework loads it, and every weight is ``step``."""
        raise NotImplementedError


class Orbax(Trainer):
    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        import orbax.checkpoint as ocp

        self.ocp = ocp
        self.manager = ocp.CheckpointManager(
            out.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=options.keep)
        )

    def save(self, step: int) -> None:
        import numpy as np

        state = {name: np.full(SIZE, step, np.float32) for name in ("a", "b", "c")}
        self.manager.save(step, args=self.ocp.args.StandardSave(state))
        self.manager.wait_until_finished()
        finished(self.out, str(step), [str(step)])

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import orbax.checkpoint as ocp

        found = ocp.StandardCheckpointer().restore((folder / "default").absolute())
        return sorted(found) == ["a", "b", "c"] and all(bool((value == step).all()) for value in found.values())


class HuggingFace(Trainer):
    pattern = "checkpoint-*"

    def run(self) -> None:
        import torch
        import transformers

        outer = self

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(SIZE))

            def forward(self, x: Any = None, labels: Any = None) -> dict[str, Any]:
                return {"loss": (self.weight * 0).sum() + 1.0, "logits": self.weight[:1]}

        class Pace(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                with torch.no_grad():
                    model.weight.fill_(state.global_step)
                say(begin=state.global_step)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                finished(outer.out, f"checkpoint-{state.global_step}", [f"checkpoint-{state.global_step}"])
                time.sleep(outer.options.pause)

        model = Model()
        last = self.options.first + self.options.count - 1
        arguments = transformers.TrainingArguments(
            str(self.out), max_steps=last, save_steps=1, save_total_limit=self.options.keep, report_to=[],
            logging_strategy="no", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=1, learning_rate=0.0,
        )  # fmt: skip
        data = [{"x": torch.zeros(1), "labels": torch.zeros(1)}] * 4
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Pace()])
        trainer.train(resume_from_checkpoint=self.options.first > 1)

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import torch
        from safetensors.torch import load_file

        weights = load_file(folder / "model.safetensors")["weight"]
        torch.load(folder / "optimizer.pt", weights_only=False)
        state = json.loads((folder / "trainer_state.json").read_text())
        return weights.numel() == SIZE and bool((weights == step).all()) and state["global_step"] == step


class Lightning(Trainer):
    pattern = "*.ckpt"

    def run(self) -> None:
        import pytorch_lightning as pl
        import torch

        outer = self

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(SIZE))

            def training_step(self, batch: Any, index: int) -> Any:
                with torch.no_grad():
                    self.weight.fill_(self.trainer.global_step + 1)
                say(begin=self.trainer.global_step + 1)
                self.log("stepped", float(self.trainer.global_step + 1))
                return (self.weight * 0).sum()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.0)

        class Pace(pl.Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                self.tell()
                time.sleep(outer.options.pause)

            def on_train_end(self, *_: Any) -> None:
                self.tell()

            def tell(self) -> None:
                for path in sorted(outer.out.glob("*.ckpt")):
                    if path.stat().st_mtime_ns != seen.get(path.name):
                        seen[path.name] = path.stat().st_mtime_ns
                        finished(outer.out, path.name, [path.name])

        seen: dict[str, int] = {p.name: p.stat().st_mtime_ns for p in self.out.glob("*.ckpt")}
        saver = pl.callbacks.ModelCheckpoint(
            self.out, save_top_k=self.options.keep, monitor="stepped", mode="max", every_n_train_steps=1, save_last=True
        )
        last = self.options.first + self.options.count - 1
        trainer = pl.Trainer(
            max_steps=last, callbacks=[saver, Pace()], logger=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=self.out.parent,
        )  # fmt: skip
        data = torch.utils.data.DataLoader(torch.zeros(1000, 1))
        resume = str(self.out / "last.ckpt") if (self.out / "last.ckpt").exists() else None
        trainer.fit(Module(), data, ckpt_path=resume, weights_only=False)

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import torch

        (file,) = folder.iterdir()
        found = torch.load(file, weights_only=False)
        return bool((found["state_dict"]["weight"] == found["global_step"]).all()) and found["global_step"] == (
            step or found["global_step"]
        )


class Keras(Trainer):
    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # Keras would import it, for seconds.
        import keras

        self.model = keras.Sequential([keras.layers.Input((10,)), keras.layers.Dense(SIZE // 10, use_bias=False)])
        self.names: list[str] = []
        # The first time this imports a lot. On a busy machine that is a pause of seconds between two files.
        self.model.to_json()

    def save(self, step: int) -> None:
        self.model.set_weights([weight * 0 + step for weight in self.model.get_weights()])
        name = f"epoch-{step:03d}"
        self.model.save_weights(self.out / f"{name}.weights.h5")
        (self.out / f"{name}.json").write_text(self.model.to_json())
        finished(self.out, name, [f"{name}.weights.h5", f"{name}.json"])
        self.model.save(self.out / "last.keras")
        finished(self.out, "last.keras", ["last.keras"])
        self.names = sorted(path.name for path in self.out.glob("epoch-*.json"))
        self.rotate(self.names)
        self.rotate([name.replace(".json", ".weights.h5") for name in self.names])

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import keras

        if (folder / "last.keras").exists():
            weights = keras.saving.load_model(folder / "last.keras").get_weights()[0]
            return bool((weights == weights.flat[0]).all()) and weights.flat[0] > 0
        model = keras.models.model_from_json(next(folder.glob("*.json")).read_text())
        model.load_weights(next(folder.glob("*.h5")))
        return all(bool((weight == step).all()) for weight in model.get_weights())


class Dcp(Trainer):
    pattern = "step-*"

    def save(self, step: int) -> None:
        import torch
        import torch.distributed.checkpoint as dcp

        dcp.save({name: torch.full((SIZE,), float(step)) for name in "abc"}, checkpoint_id=self.out / f"step-{step}")
        finished(self.out, f"step-{step}", [f"step-{step}"])
        self.rotate(sorted((p.name for p in self.out.glob("step-*")), key=lambda name: int(name[5:])))

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import torch
        import torch.distributed.checkpoint as dcp

        found = {name: torch.zeros(SIZE) for name in "abc"}
        dcp.load(found, checkpoint_id=folder)
        return all(bool((value == step).all()) for value in found.values())


class TensorFlow(Trainer):
    pattern = "ckpt-*"

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        super().__init__(out, options)
        import tensorflow as tf

        self.variables = [tf.Variable(tf.zeros(SIZE)) for _ in range(3)]
        self.manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(v=self.variables), str(out), max_to_keep=options.keep
        )

    def save(self, step: int) -> None:
        for variable in self.variables:
            variable.assign(variable * 0 + step)
        self.manager.save(checkpoint_number=step)
        parts = [path.name for path in self.out.glob(f"ckpt-{step}.*")]
        finished(self.out, f"ckpt-{step}", parts, inside=False)

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import tensorflow as tf

        index = next(folder.glob("*.index"))
        reader = tf.train.load_checkpoint(str(index.with_suffix("")))
        names = [f"v/{n}/.ATTRIBUTES/VARIABLE_VALUE" for n in range(3)]
        return all(bool((reader.get_tensor(name) == step).all()) for name in names)


class DeepSpeed(Trainer):
    """Its files, written as it writes them: one after the other, and last the one that names the newest."""

    pattern = "global_step*"

    def save(self, step: int) -> None:
        import torch

        folder = self.out / f"global_step{step}"
        folder.mkdir(exist_ok=True)
        for name in ("mp_rank_00_model_states.pt", *(f"zero_pp_rank_{n}_optim_states.pt" for n in range(3))):
            torch.save({"step": step, "weight": torch.full((SIZE,), float(step))}, folder / name)
            time.sleep(0.05)
        (self.out / "latest").write_text(folder.name)
        finished(self.out, folder.name, [folder.name], inside=False)
        self.rotate(sorted((p.name for p in self.out.glob("global_step*")), key=lambda name: int(name[11:])))

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        import torch

        files = sorted((folder / f"global_step{step}").iterdir())
        loaded = [torch.load(file) for file in files]
        return len(files) == 4 and all(bool((found["weight"] == step).all()) for found in loaded)


class Pairs(Trainer):
    """Two parts and an index, written in place, as TensorFlow's were on file systems where it does not rename."""

    pattern = "ckpt-*"

    def save(self, step: int) -> None:
        names = [f"ckpt-{step}.data-{n:05d}-of-00002" for n in range(2)]
        for name in names:
            with open(self.out / name, "wb") as file:
                for _ in range(10):
                    file.write(b"%08d" % step * (SIZE // 10))
                    time.sleep(0.01)
        (self.out / f"ckpt-{step}.index").write_text(str(step))
        (self.out / "checkpoint").write_text(f'model_checkpoint_path: "ckpt-{step}"\n')
        finished(self.out, f"ckpt-{step}", [*names, f"ckpt-{step}.index"], inside=False)
        numbers = sorted(int(path.stem[5:]) for path in self.out.glob("ckpt-*.index"))
        for ending in ("index", "data-00000-of-00002", "data-00001-of-00002"):
            self.rotate([f"ckpt-{number}.{ending}" for number in numbers])

    @classmethod
    def verify(cls, folder: Path, step: int) -> bool:
        parts = [path.read_bytes() for path in sorted(folder.glob("ckpt-*.data-*"))]
        whole = b"%08d" % step * (SIZE // 10) * 10
        return parts == [whole, whole] and next(folder.glob("*.index")).read_text() == str(step)


KINDS: dict[str, type[Trainer]] = {
    "orbax": Orbax, "hf": HuggingFace, "lightning": Lightning, "keras": Keras, "dcp": Dcp, "tensorflow": TensorFlow,
    "deepspeed": DeepSpeed, "pairs": Pairs,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("directory", nargs="?")
    parser.add_argument("count", type=int, nargs="?")
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    kind = KINDS[options.kind]
    if options.verify:
        for line in sys.stdin:
            folder, _, step = line.strip().rpartition(" ")
            try:
                print(json.dumps({"folder": folder, "whole": bool(kind.verify(Path(folder), int(step)))}), flush=True)
            except Exception as error:  # Whatever it is, it cannot be loaded.
                print(json.dumps({"folder": folder, "whole": False, "why": repr(error)}), flush=True)
        return
    out = Path(options.directory)
    out.mkdir(parents=True, exist_ok=True)
    kind(out, options).run()


if __name__ == "__main__":
    main()
