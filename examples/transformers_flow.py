"""Hugging Face's Trainer: each checkpoint it writes is saved, and a retry goes on as if it had not been interrupted."""

from metaflow import FlowSpec, checkpoint, retry, step


def train():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from async_ckpt.integrations.transformers import CheckpointCallback, resume_path

    torch.manual_seed(0)
    sizes = dict(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    tokens = [(torch.arange(16) * (1 + index % 7) + index) % 50 for index in range(64)]
    arguments = dict(output_dir="out", max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=2)
    arguments |= dict(save_steps=2, save_total_limit=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(
        model=GPT2LMHeadModel(GPT2Config(**sizes)),
        train_dataset=[{"input_ids": each, "labels": each} for each in tokens],
        args=TrainingArguments(**arguments),
        callbacks=[CheckpointCallback()],
    )
    trainer.train(resume_from_checkpoint=resume_path(trainer))
    return trainer.state.log_history[-1]["train_loss"]


class TransformersFlow(FlowSpec):
    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        self.loss = train()
        self.next(self.end)

    @step
    def end(self):
        print(f"The mean loss was {self.loss:.3f}")


if __name__ == "__main__":
    TransformersFlow()
