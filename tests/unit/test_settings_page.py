"""docs/settings.md is what ``python -m docs.settings`` makes of the comments in config.py."""

from __future__ import annotations

from dataclasses import fields

from async_ckpt.config import Config
from docs import settings


def test_the_page_is_the_one_that_the_comments_make() -> None:
    assert settings.PAGE.read_text() == settings.page(), "Run: python -m docs.settings"


def test_every_setting_has_a_row() -> None:
    rows = [line for line in settings.page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(fields(Config))
    assert "| `FLUSH_TIMEOUT_S` | 21600 s (6 h) | How long the end of a step waits" in settings.page()
    assert "| `CLAIM_WAIT_S` | 10 s |" in settings.page()
    assert "| `WATCH_COPY_BYTES` | 256 MiB |" in settings.page()
