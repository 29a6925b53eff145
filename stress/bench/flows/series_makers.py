"""Writes checkpoints as frameworks do, with them, on the CPU: ``python series_makers.py KIND FOLDER COUNT SIZE``.

One directory a checkpoint, ``FOLDER/1`` to ``FOLDER/COUNT``, all of new files. ``SIZE``: ``full`` (200 to 400 MB a
checkpoint) or ``quick``. Needs the frameworks and nothing of this repository. Prints what changed, as JSON: a dict for
each checkpoint with ``bytes`` (all of it), and of these what the one before did not have at the same place of the same
file: ``exact`` (bytes), ``blocks`` (blocks of 4 KiB) and ``chunks`` (chunks of 16 MiB).
"""

import copy
import json
import os
import shutil
import sys

BLOCK, CHUNK = 4 << 10, 16 << 20


# -- what is trained ---------------------------------------------------------------------------------------------------


def llama(width, layers, words, dtype="float32"):
    """A causal language model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers, vocab_size=words,
        num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(getattr(torch, dtype))


def tokenizer(words):
    """A fast tokenizer whose ``tokenizer.json`` is megabytes, as that of today's models."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"word-{number * 7919 % 1_000_003:06d}": number for number in range(words)} | {"[UNK]": words}
    made = Tokenizer(WordLevel(vocabulary, "[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[UNK]")


def texts(words, count=64, length=32):
    """A data set of random words."""
    import torch

    rows = torch.randint(0, words, (count, length), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row} for row in rows]


def train_with_transformers(model, folder, count, words, after=lambda directory: None):
    """The library's Trainer, which writes a checkpoint after each step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class AfterSave(TrainerCallback):
        def on_save(self, args, state, control, **more):
            after(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))

    arguments = TrainingArguments(
        folder, max_steps=count, save_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[],
        logging_steps=1, disable_tqdm=True, learning_rate=1e-3, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=texts(words), processing_class=tokenizer(4 * words), callbacks=[AfterSave()]
    )
    trainer.train()
    for number in range(1, count + 1):
        os.rename(os.path.join(folder, f"checkpoint-{number}"), os.path.join(folder, str(number)))


# -- the kinds -------------------------------------------------------------------------------------------------------


def hf_full(folder, count, full):
    """transformers' Trainer, all weights trained with Adam; tokenizer files beside."""
    words = 32_000 if full else 2_000
    train_with_transformers(llama(384 if full else 64, 6 if full else 2, words), folder, count, words)


def hf_lora(folder, count, full):
    """transformers' Trainer with PEFT; the frozen base is written into each new directory, too, in several files."""
    from peft import LoraConfig, get_peft_model

    words = 32_000 if full else 2_000
    base = llama(1024 if full else 64, 8 if full else 2, words, "bfloat16")
    frozen = copy.deepcopy(base)
    model = get_peft_model(base, LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))

    def write_base(directory):
        frozen.save_pretrained(os.path.join(directory, "base"), max_shard_size="100MB" if full else "1MB")

    train_with_transformers(model, folder, count, words, write_base)


def accelerate_lora(folder, count, full):
    """accelerate's ``save_state`` of a PEFT model: base and adapters in one file, layer by layer."""
    import torch
    from accelerate import Accelerator
    from peft import LoraConfig, get_peft_model

    words = 32_000 if full else 2_000
    base = llama(1024 if full else 64, 8 if full else 2, words, "bfloat16")
    model = get_peft_model(base, LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    rows = texts(words, count)
    for number in range(1, count + 1):
        batch = {key: value[None] for key, value in rows[number - 1].items()}
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.save_state(os.path.join(folder, str(number)))


def fsdp_dcp(folder, count, full):
    """FSDP over two ranks, saved by torch.distributed.checkpoint; the lower three quarters of the layers are frozen."""
    import torch.multiprocessing

    torch.multiprocessing.spawn(_fsdp_rank, (folder, count, full), nprocs=2)


def _fsdp_rank(rank, folder, count, full):
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/.rendezvous", rank=rank, world_size=2)
    torch.manual_seed(7)
    width, layers = (1536, 24) if full else (128, 8)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    for layer in list(model)[: layers * 3 // 4]:
        layer.requires_grad_(False)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-3)
    for number in range(1, count + 1):
        model(torch.randn(4, width)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=os.path.join(folder, str(number)))
    dist.destroy_process_group()


def torch_frozen(folder, count, full, grows=False):
    """One file of ``torch.save``: a frozen backbone, a head, its Adam state and the epoch."""
    import torch

    torch.manual_seed(7)
    width, layers = (2048, 16) if full else (256, 16)
    backbone = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers))).requires_grad_(False)
    model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(width, width)})
    optimizer = torch.optim.Adam(model["head"].parameters())
    losses = []
    for number in range(1, count + 1):
        loss = model["head"](backbone(torch.randn(4, width))).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses += [loss.item()] * 10
        state = {"epoch": number, "loss": losses[-1], "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        os.mkdir(os.path.join(folder, str(number)))
        torch.save(({"losses": losses} if grows else {}) | state, os.path.join(folder, str(number), "model.pt"))


def torch_history(folder, count, full):
    """The same with a list of all losses so far, which grows: what follows it in the file moves."""
    torch_frozen(folder, count, full, grows=True)


def lightning_adam(folder, count, full):
    """Lightning's checkpoint, one file: all weights and their Adam state."""
    import pytorch_lightning as lightning
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint

    width, layers = (1536, 10) if full else (128, 8)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))

        def training_step(self, batch, index):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    lightning.seed_everything(7)
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=count, callbacks=[saves], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(4 * count, width), batch_size=4))
    for number in range(1, count + 1):
        os.mkdir(os.path.join(folder, str(number)))
        os.rename(os.path.join(folder, f"step={number}.ckpt"), os.path.join(folder, str(number), "last.ckpt"))


# -- what changed ----------------------------------------------------------------------------------------------------


def changes(folder, count):
    """As the module's docstring says; of the first checkpoint all is new."""
    figures, before = [], {}
    for number in range(1, count + 1):
        files = files_of(os.path.join(folder, str(number)))
        total = sum(os.path.getsize(path) for path in files.values())
        found = {"bytes": total, "files": len(files), "exact": 0, "blocks": 0, "chunks": 0}
        for name, path in files.items():
            for key, value in changed(before.get(name), path).items():
                found[key] += value
        figures.append(found)
        before = files
    return figures


def files_of(directory):
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return {os.path.relpath(path, directory): path for path in paths}


def changed(old, new):
    """What of a file another one has not at the same place; ``old``: None where there is none."""
    import numpy

    def bytes_of(path):
        if path is None or not os.path.getsize(path):
            return numpy.zeros(0, numpy.uint8)
        return numpy.memmap(path, numpy.uint8, "r")

    one, other = bytes_of(old), bytes_of(new)
    found = {"exact": 0, "blocks": 0, "chunks": 0}
    for at in range(0, len(other), CHUNK):
        chunk = other[at : at + CHUNK]
        earlier = one[at : at + CHUNK]
        differs = numpy.ones(len(chunk), bool)
        both = min(len(chunk), len(earlier))
        differs[:both] = chunk[:both] != earlier[:both]
        if differs.any() or len(earlier) != len(chunk):
            found["exact"] += int(differs.sum())
            found["chunks"] += len(chunk)
            blocks = numpy.add.reduceat(differs, range(0, len(differs), BLOCK), dtype=int) > 0
            found["blocks"] += min(int(blocks.sum()) * BLOCK, len(chunk))
    return found


KINDS = (hf_full, hf_lora, accelerate_lora, fsdp_dcp, torch_frozen, torch_history, lightning_adam)


def main():
    kind, folder, count, size = sys.argv[1:]
    os.makedirs(folder)
    # Frameworks print what they like: the figures are the last line.
    {each.__name__: each for each in KINDS}[kind](folder, int(count), size == "full")
    for name in os.listdir(folder):
        if not name.isdecimal():
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    print(json.dumps(changes(folder, int(count))), flush=True)


if __name__ == "__main__":
    main()
