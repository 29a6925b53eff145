"""LoRA: each checkpoint has the adapters alone, and the frozen base is saved once."""

from metaflow import FlowSpec, Parameter, checkpoint, retry, step


def make_base():
    """Stands in for AutoModelForCausalLM.from_pretrained("…"): a model of random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    print("The base is made")
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**sizes))


def make_model():
    from peft import LoraConfig, get_peft_model

    from async_ckpt.integrations.peft import frozen_base

    base = frozen_base(make_base)  # Saved in the first attempt; a retry gets the same.
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True))


def make_data():
    import torch

    tokens = [(torch.arange(16) * (1 + index % 7) + index) % 50 for index in range(64)]
    return [{"input_ids": each, "labels": each} for each in tokens]


def train():
    from transformers import Trainer, TrainingArguments

    from async_ckpt.integrations.transformers import CheckpointCallback, resume_path

    arguments = dict(output_dir="out", max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=2)
    arguments |= dict(save_total_limit=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(
        model=make_model(),
        train_dataset=make_data(),
        args=TrainingArguments(**arguments),
        callbacks=[CheckpointCallback()],
    )
    trainer.train(resume_from_checkpoint=resume_path(trainer))


def train_by_hand():
    import torch

    from async_ckpt.integrations.peft import load_adapter, save_adapter

    model, data, first = make_model(), make_data(), 0
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    if (state := load_adapter(model)) is not None:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        first = state["step"] + 1
    for number in range(first, 20):
        batch = {name: torch.stack([each[name] for each in data[number : number + 4]]) for name in data[0]}
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number % 2:
            state = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "step": number}
            save_adapter(model, state, metadata={"step": number})


class PeftFlow(FlowSpec):
    by_hand = Parameter("by-hand", default=False, help="a loop of one's own instead of the Trainer")

    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        train_by_hand() if self.by_hand else train()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    PeftFlow()
