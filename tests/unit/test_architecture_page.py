"""docs/architecture.md names the rooms that there are, from the top to the bottom; and pages name files that exist."""

from __future__ import annotations

import re

import pytest

from harness.common.pages import pages
from harness.flow_runs.metaflow_env import REPOSITORY
from tests.unit.test_layers import LAYERS

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()
_ROOTS = ("", "async_ckpt", "metaflow_extensions/async_ckpt")


def test_every_room_has_a_row_in_the_order_of_the_layers() -> None:
    table = PAGE.split("## The rooms")[1].split("\n## ")[0]
    rooms = re.findall(r"^\| `(\w+)` \|", table, flags=re.M)
    assert rooms == list(reversed(LAYERS))


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(page for page in pages() if page.startswith("docs/"))]
)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = set(re.findall(r"`([\w/]+/[\w/]+\.py)`", (REPOSITORY / page).read_text()))
    missing = {name for name in named if not any((REPOSITORY / root / name).is_file() for root in _ROOTS)}
    assert len(named) > (30 if page == "docs/architecture.md" else -1)
    assert missing == set(), f"{page} names files that are not there"


def test_the_words_are_where_the_page_says() -> None:
    named = re.findall(r"`(\w+)`(?: and `(\w+)`)? in `([\w/]+\.py)`", PAGE.split("\n## Words")[1])
    for first, second, file in named:
        source = (REPOSITORY / "async_ckpt" / file).read_text()
        for name in filter(None, (first, second)):
            assert re.search(rf"^class {name}\b", source, flags=re.M), f"{name} is not in {file}"
    assert len(named) > 25
