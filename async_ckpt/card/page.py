"""The card as a page of its own: it loads nothing from anywhere, and draws itself from the data within it."""

from __future__ import annotations

import functools
import json
import os
import re
from typing import Any

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_PARTS = {
    "[UPLOT_CSS]": "vendor/uPlot.min.css", "[UPLOT_JS]": "vendor/uPlot.iife.min.js", "[CARD_JS]": "page.js",
}  # fmt: skip
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@functools.lru_cache(maxsize=1)
def _template() -> str:
    def read(name: str) -> str:
        with open(os.path.join(_FOLDER, name), encoding="utf-8") as file:
            return file.read()

    text = read("page.html")
    for mark, name in _PARTS.items():
        text = text.replace(mark, read(name))
    return text


def page(data: dict[str, Any], token: str) -> str:
    """The page.

    Parameters
    ----------
    data : dict
        What ``page.js`` draws, as JSON; texts in it may be anybody's.
    token : str
        A viewer that has a page of another token loads it again; ``"final"``: there will be no other.
    """
    before, _, after = _template().replace("[RELOAD_TOKEN]", token).partition("[CARD_DATA]")
    # Nothing in the data can end the element that it stands in.
    return f"{before}{json.dumps(data, separators=(',', ':')).replace('<', chr(92) + 'u003c')}{after}"


def data_of(text: str) -> dict[str, Any]:
    """The data of a page; empty where there is none."""
    found = _DATA.search(text)
    data = json.loads(found[1]) if found else {}
    return data if isinstance(data, dict) else {}
