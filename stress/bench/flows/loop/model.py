"""A language model with Adam on random tokens: a realistic number of tensors, and nothing that is not PyTorch's."""

import math
import zlib

import torch
from torch import nn
from torch.nn import functional

_VOCABULARY, _SEQUENCE, _HEADS = 8192, 64, 8
_LARGE = 400_000_000


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        heads = self.qkv(self.before(x)).view(batch, length, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.after(x))))


class Model(nn.Module):
    """About so many parameters, in 12 blocks, or in 24 where they are many."""

    def __init__(self, parameters):
        super().__init__()
        count = 24 if parameters >= _LARGE else 12
        # 12 width² a block, and the embedding, which is the last layer's weight as well.
        half = _VOCABULARY / (24 * count)
        width = round((math.sqrt(half**2 + parameters / (12 * count)) - half) / 32) * 32
        self.embedding = nn.Embedding(_VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Training:
    """One process that trains. ``tokens``: of one step."""

    def __init__(self, parameters, tokens, device):
        torch.manual_seed(0)
        with torch.device(device):
            self.model = Model(parameters)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1000)
        self.device = device
        self.steps = 0
        self._shape = max(tokens // _SEQUENCE, 1), _SEQUENCE
        self.step()

    def step(self):
        self.forward_backward()
        self.update()

    def forward_backward(self):
        """What changes no parameter."""
        tokens = torch.randint(_VOCABULARY, self._shape, device=self.device)
        logits = self.model(tokens[:, :-1]).flatten(0, 1)
        functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()

    def update(self):
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.steps += 1

    def synchronize(self):
        """Until the device has done what it was told: so that a time is that of the work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def state(self):
        """Everything that a resume needs; the tensors are those that training goes on with."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(), "rng": torch.get_rng_state(), "steps": self.steps,
        }  # fmt: skip

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.load_values(state)

    def load_values(self, state):
        """All but the model's tensors; the optimizer keeps the tensors that it is given."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self.steps = state["steps"]

    def forget(self):
        """Zeros everywhere, in memory that was used before: what is there after a load came from the load."""
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.zero_()
        for moments in self.optimizer.state.values():
            for name, tensor in moments.items():
                moments[name] = torch.empty_like(tensor).zero_()  # What a load put there may be a file's pages.
        self.steps = 0


def leaves(state, path=()):
    """(path, tensor or plain value), in the order of the keys' text: savers may sort them."""
    if isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from leaves(state[key], (*path, str(key)))
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            yield from leaves(value, (*path, str(number)))
    else:
        yield path, state


def tensors(state):
    return [value for _, value in leaves(state) if isinstance(value, torch.Tensor)]


def unique_bytes(state):
    """Bytes of all tensors; one that is there under two names counts once."""
    return sum({value.data_ptr(): value.nbytes for value in tensors(state)}.values())


def digest(state):
    """A number that says which bits a state has, whatever holds them."""
    total = 0
    for path, value in leaves(state):
        if isinstance(value, torch.Tensor):
            told = f"{path} {value.dtype} {tuple(value.shape)}"
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            total = zlib.crc32(data, zlib.crc32(told.encode(), total))
        else:
            total = zlib.crc32(f"{path} {value!r}".encode(), total)
    return total
