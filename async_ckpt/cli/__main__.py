"""In a pod there is a code package, and no script of an installed one: ``python -m async_ckpt.cli``."""

from .commands import main

main()
