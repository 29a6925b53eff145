"""What the flow with Hugging Face's Trainer trains, and the callback that saves."""

import os
import time

import torch
from dying import digest, wait_to_be_killed
from metaflow import Checkpoint, current
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints


class MetaflowCheckpointCallback(TrainerCallback):
    _pointer_id = 0

    def __init__(self, name=None, metrics=("loss", "accuracy")):
        type(self)._pointer_id += 1
        self._name = name or f"chckpt_{self._pointer_id}"
        self.checkpointer = current.checkpoint if current.is_running_flow else Checkpoint(init_dir=True)
        self._default_chckpt_dir = self.checkpointer.directory
        self.latest_checkpoint = None
        self._metrics = metrics

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        dir_prefix = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        newest = state.log_history[-1]
        self.latest_checkpoint = self.checkpointer.save(
            os.path.join(args.output_dir, dir_prefix),
            metadata={
                "global_step": state.global_step,
                "epoch": round(state.epoch or 0, 3),
                "saved_from": "HuggingfaceTrainer",
                "checkpoint_dir": dir_prefix,
                **{name: round(newest[name], 3) for name in newest if name in self._metrics},
            },
            name=self._name,
            latest=True,
        )
        wait_to_be_killed(state.global_step)


class Beginning(TrainerCallback):
    """Remembers the step that the training went on from."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


class Tokens(torch.utils.data.Dataset):
    """Sequences that count up from somewhere."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = (torch.arange(16) + index) % 50
        return {"input_ids": tokens, "labels": tokens}


def make_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def make_instead_of_downloading(repo_id, local_dir, **_):
    """What a snapshot of the hub holds, for a model of random weights."""
    make_model().save_pretrained(local_dir)
    return local_dir


def arguments(output_dir, steps):
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
    )


def train(base_model_path, output_dir, resuming_checkpoint_path, steps, callback):
    """The trained model, its losses by step, those before the checkpoint included, and the step it went on from."""
    beginning = Beginning()
    network = GPT2LMHeadModel.from_pretrained(base_model_path)
    trainer = Trainer(
        model=network,
        train_dataset=Tokens(),
        args=arguments(output_dir, steps),
        callbacks=[callback, beginning],
    )
    trainer.train(resume_from_checkpoint=resuming_checkpoint_path)
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    return network, losses, beginning.step


def weights_of(network):
    return digest(value.numpy() for value in network.state_dict().values())


def test(path):
    network = GPT2LMHeadModel.from_pretrained(path).eval()
    batch = Tokens()[0]["input_ids"].unsqueeze(0)
    with torch.no_grad():
        return network(input_ids=batch, labels=batch).loss.item()


def fill(directory):
    """Outputs of a training whose checkpoint of step 6 is newer than that of step 8: it was written again later."""
    Trainer(model=make_model(), train_dataset=Tokens(), args=arguments(directory, 8)).train()
    now = time.time()
    for age, name in ((60, "checkpoint-8"), (0, "checkpoint-6")):
        os.utime(os.path.join(directory, name), (now - age, now - age))


def chosen(directory):
    """What the Trainer resumes from, and in which order it would remove what is there."""
    in_order = sort_checkpoints(directory, use_mtime=True)
    return [os.path.basename(path) for path in (get_last_checkpoint(directory), *in_order)]
