"""The code blocks of the pages: README, docs and the others that people copy from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.flow_runs.metaflow_env import REPOSITORY

_FENCE = "```"


@dataclass(frozen=True)
class Block:
    """One fenced block, word for word.

    ``page`` is relative to the repository, ``line`` is where its text begins, ``language`` is "" where none is named.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages, relative to the repository."""
    found = [path for pattern in ("*.md", "*/*.md", "*/*/*.md") for path in REPOSITORY.glob(pattern)]
    names = [path.relative_to(REPOSITORY) for path in found]
    # What begins with a dot is an environment, or a tool's.
    return sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts))


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page.

    Raises
    ------
    ValueError
        For a fence that is indented, of other signs, or never closed: its block would be passed over.
    """
    begun: tuple[int, str] | None = None
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if begun is None and line.strip().startswith((_FENCE, "~~~")):
            if not line.startswith(_FENCE) or line.startswith(_FENCE + "`"):
                raise ValueError(f"{page}:{number}: begin blocks with three backticks, at the beginning of the line")
            begun = number + 1, line.removeprefix(_FENCE).strip()
        elif begun is not None and line == _FENCE:
            first, language = begun
            yield Block(page, first, language, "".join(f"{each}\n" for each in lines[first - 1 : number - 1]))
            begun = None
    if begun is not None:
        raise ValueError(f"{page}:{begun[0] - 1}: this block has no end")


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks_of(page, Path(REPOSITORY, page).read_text())]
