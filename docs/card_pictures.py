"""Draws the pictures of ``docs/card.md`` with a real browser: ``python -m docs.card_pictures``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from async_ckpt.card.page import page
from harness.common.browser import picture
from harness.common.card_states import STATES

FOLDER = Path(__file__).with_name("pictures")
#: By name: which state, width, height, dark.
PICTURES = {
    "start": ("start", 1100, 620, False), "mid-flight": ("mid-flight", 1100, 1750, False),
    "failure": ("failure", 1100, 1650, False), "end": ("end", 1100, 2250, False),
    "phone": ("mid-flight", 400, 2300, False),
    "dark": ("mid-flight", 1100, 1750, True), "many": ("many", 1100, 2900, False), "gang": ("gang", 1100, 1750, False),
}  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (state, width, height, dark) in PICTURES.items():
            path = Path(folder) / f"{name}.html"
            path.write_text(page(STATES[state](), "final"), encoding="utf-8")
            target = FOLDER / f"card-{name}.png"
            picture(path, target, Path(folder) / "home", width=width, height=height, dark=dark)
            print(target)


if __name__ == "__main__":
    main()
