"""A real browser, without a window: what a page shows, as text and as a picture."""

from __future__ import annotations

import html.parser
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
#: For which time a page may run its timers, in milliseconds; a page without any is done at once.
_BUDGET_MS = 3000
_LIMIT_S = 120


def browser() -> str:
    """Its program. A test that needs one is skipped where there is none."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium")


def _run(*arguments: str, home: Path) -> str:
    home.mkdir(parents=True, exist_ok=True)
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={home}",
        f"--virtual-time-budget={_BUDGET_MS}", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(home), "TZ": "UTC", "LANG": "C.UTF-8"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S)
    assert run.returncode == 0, run.stderr
    return run.stdout


def shown(page: Path, home: Path) -> Shown:
    """What the page came to when its scripts had run."""
    parser = _Reader()
    parser.feed(_run("--dump-dom", page.as_uri(), home=home))
    return parser.shown


def picture(page: Path, to: Path, home: Path, *, width: int = 1200, height: int = 1600, dark: bool = False) -> None:
    """Write what it looks like to a PNG."""
    # Headless, there is no desktop whose colours would count.
    dark_mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(f"--screenshot={to}", f"--window-size={width},{height}", *dark_mode, page.as_uri(), home=home)


@dataclass
class Shown:
    """The visible words of a page in order, and the rows of its table."""

    words: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.words)


class _Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.shown = Shown()
        self._hidden, self._in_cell = 0, False
        #: In the legend of a plot, which is a table as well.
        self._in_legend = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "title", "noscript"):
            self._hidden += 1
        elif tag == "table":
            self._in_legend = "u-legend" in str(dict(attrs).get("class"))
        elif self._in_legend:
            return
        elif tag == "tr":
            self.shown.rows.append([])
        elif tag in ("td", "th"):
            self.shown.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "title", "noscript"):
            self._hidden -= 1
        elif tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._hidden or not data.strip():
            return
        self.shown.words.append(data.strip())
        if self._in_cell:
            self.shown.rows[-1][-1] += data
