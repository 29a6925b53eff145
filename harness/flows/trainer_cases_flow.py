"""A Trainer that keeps the best, is killed in the middle of its own save, and goes on in another directory."""

import os
import signal

from metaflow import FlowSpec, checkpoint, current, retry, step

KILLED_AT = 8


def make_trainer(output_dir, **options):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from async_ckpt.integrations.transformers import CheckpointCallback

    torch.manual_seed(0)
    sizes = dict(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    tokens = [(torch.arange(16) + index) % 50 for index in range(32)]
    data = [{"input_ids": each, "labels": each} for each in tokens]
    # The first loss is the highest: so the first checkpoint is the best.
    arguments = TrainingArguments(
        output_dir=output_dir, max_steps=10, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
        save_steps=2, save_total_limit=1, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True, use_cpu=True, report_to="none", disable_tqdm=True,
        **options,
    )  # fmt: skip
    return Trainer(
        model=GPT2LMHeadModel(GPT2Config(**sizes)), train_dataset=data, eval_dataset=data[:4], args=arguments,
        callbacks=[CheckpointCallback("the best", {"who": "me"})],
    )  # fmt: skip


def why(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class TrainerCasesFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        from safetensors.torch import load_file
        from transformers import Trainer

        from async_ckpt.integrations import transformers as ours

        ours.TRIED = ("4.0", "4.1")
        name = ("out ä'\"", "another")[current.retry_count]
        trainer = make_trainer(name, save_only_model=False)
        self.resumed = ours.resume_path(trainer)
        if current.retry_count == 0:
            assert self.resumed is None
            save_rng_state = Trainer._save_rng_state

            def save_or_die(self, output_dir):
                if self.state.global_step == KILLED_AT:
                    assert os.path.exists(os.path.join(output_dir, "optimizer.pt"))
                    os.kill(os.getpid(), signal.SIGKILL)
                save_rng_state(self, output_dir)

            Trainer._save_rng_state = save_or_die
        trainer.train(resume_from_checkpoint=self.resumed)
        self.best = trainer.state.best_model_checkpoint
        self.saved = [[one.name, one.metadata, one.state] for one in current.checkpoint.list()]
        first = current.checkpoint.list()[-1]
        current.checkpoint.load(first, "first")
        weights = load_file("first/model.safetensors")
        self.is_best = all(
            (value == weights[name]).all().item()
            for name, value in trainer.model.state_dict().items()
            if name in weights
        )
        with open("other", "w") as file:
            file.write("no checkpoint of a Trainer")
        current.checkpoint.load(current.checkpoint.save("other", name="other"))
        self.other = why(lambda: ours.resume_path(trainer))
        self.next(self.end)

    @step
    def end(self):
        self.outside = why(lambda: make_trainer("nowhere"))


if __name__ == "__main__":
    TrainerCasesFlow()
