"""docs/architecture.md names the rooms that there are, from the top to the bottom, and files that exist."""

from __future__ import annotations

import re

from harness.metaflow_env import REPOSITORY
from tests.unit.test_layers import LAYERS

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()
_ROOTS = ("async_ckpt", "metaflow_extensions/async_ckpt")


def test_every_room_has_a_row_in_the_order_of_the_layers() -> None:
    table = PAGE.split("## The rooms")[1].split("\n## ")[0]
    rooms = re.findall(r"^\| `(\w+)` \|", table, flags=re.M)
    assert rooms == list(reversed(LAYERS))


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    missing = {name for name in named if not any((REPOSITORY / root / name).is_file() for root in _ROOTS)}
    assert len(named) > 30
    assert missing == set(), "docs/architecture.md names files that are not there"
