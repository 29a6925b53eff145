"""``async-ckpt``: checkpoints from a shell."""

from .commands import main as main
