"""Writes ``docs/settings.md`` from the comments in ``async_ckpt/config.py``: ``python -m docs.settings``."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

from async_ckpt import config
from async_ckpt.config import ENV_PREFIX, Config

PAGE = Path(__file__).with_suffix(".md")

_INTRO = """# Settings

Each setting is an environment variable: `METAFLOW_ASYNC_CKPT_` and the name below, for example
`METAFLOW_ASYNC_CKPT_MAX_PENDING=3`. Set it where you start the flow; remote tasks get it as well. A value that cannot
be read is an error that names the variable.

Some settings are also options of `@checkpoint`. The option counts where both are given, but `SPOOL_DIR` goes before
`temp_dir_root`. Names that end in `_S` are in seconds, those that end in `_BYTES` are in bytes.

This page is made from the comments in [`async_ckpt/config.py`](../async_ckpt/config.py) by `python -m docs.settings`.
"""

_FIELD = re.compile(r"((?:    #: .*\n)+)    (\w+): [\w\[\]]+ = ")
_HEADING = re.compile(r"^    # -- (.*) --$", re.M)
#: Seconds in units that are easier to read.
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def page() -> str:
    """The whole page.

    Raises
    ------
    ValueError
        A field of ``Config`` has no comment of its own.
    """
    source = Path(config.__file__).read_text()
    source = source[source.index("class Config:") : source.index("    @classmethod")]
    defaults = {item.name: item.default for item in fields(Config)}
    _, *parts = _HEADING.split(source)
    text, seen = _INTRO, []
    for title, part in zip(parts[::2], parts[1::2], strict=True):
        text += f"\n## {title}\n\n| setting | default | |\n|---|---|---|\n"
        for comment, name in _FIELD.findall(part):
            words = " ".join(line.removeprefix("    #: ") for line in comment.splitlines())
            text += f"| `{name.upper()}` | {_shown(name, defaults[name])} | {words.replace('``', '`')} |\n"
            seen.append(name)
    if missing := defaults.keys() - seen:
        raise ValueError(f"Without a comment of its own, or before the first heading: {', '.join(sorted(missing))}")
    return text


def _shown(name: str, default: object) -> str:
    """A default as people read it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, str):
        return f"`{default}`" if default else "none"
    assert isinstance(default, int | float)
    if name.endswith("_bytes"):
        for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if default and default % size == 0:
                return f"{default // size} {unit}"
    if name.endswith("_s") and not name.endswith("_bytes_s"):
        size, unit = next(((size, unit) for size, unit in _UNITS if default >= size), (1, ""))
        return f"{default:g} s" + (f" ({default / size:g} {unit})" if default > 60 else "")
    return f"{default:,}"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m docs.settings", description=__doc__).parse_args()
    PAGE.write_text(page())
    print(f"{PAGE}: the variables begin with {ENV_PREFIX}")
