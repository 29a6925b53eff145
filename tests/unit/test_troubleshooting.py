"""docs/troubleshooting.md has an entry for every error that the package raises, and for no other."""

from __future__ import annotations

import re

from harness.common.error_texts import error_texts
from harness.flow_runs.metaflow_env import REPOSITORY

PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text()


def entries() -> list[str]:
    """The texts in the first cells of the page's tables of errors."""
    found: list[str] = []
    of_errors = False
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            of_errors = False
        elif line == "| error | do |":
            of_errors = True
        elif of_errors:
            found += re.findall("`([^`]+)`", line.split(" | ")[0])
    return found


def test_every_error_has_an_entry() -> None:
    missing = {text: place for text, place in error_texts().items() if text not in entries()}
    assert missing == {}, "Add these texts to docs/troubleshooting.md, or correct the entries that they had"


def test_every_entry_is_an_error_that_there_is() -> None:
    assert set(entries()) - error_texts().keys() == set(), "No error has these texts any more"


def test_no_error_has_two_entries() -> None:
    assert len(entries()) == len(set(entries()))


def test_the_texts_are_found_in_the_source() -> None:
    texts = error_texts()
    assert len(texts) > 150
    # A text, one with something filled in, one kept in a variable first, one of a function that makes the error.
    assert {
        "rank and world_size belong together", "storage_format=… is unknown", "Cannot load into …: …",
        "Cannot capture …: symbolic links in it lead to more than … folders",
    } <= texts.keys()  # fmt: skip
