"""Names: which ones a pattern means, and which ones say that something is not finished.

Many programs write under another name, and rename when they have finished. There are too many to list them, but they
mark the other name in a few ways. It is the name of something unfinished if

- a word that says so stands in it, not next to another letter or digit, in capitals or not:
  ``5.orbax-checkpoint-tmp-1700000000``, ``tmp-checkpoint-5``, ``ckpt-2_temp``, ``model._COPYING_``;
- it has a random part: ``tmpab12cd_e`` (Python's tempfile), ``x.a8Xk31`` (mktemp);
- it ends like ``~`` (editors), or is hidden (rsync's ``.name.XXXXXX``, NFS's ``.nfs0001``).

A pattern that has such a word, or the dot, means such names. A folder whose name is nothing but such a word (``tmp``)
is a place, not something unfinished.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from ..capture.walk import ANNEX_PREFIX
from ..config import is_spools_name
from ..errors import UsageError

#: Words that say so wherever they stand in a name.
_ANYWHERE = (
    r"tmp\d*|temporary|partial|incomplete|unfinished|uncommitted|unverified|writing|copying|inprogress|in[-_ ]progress|"
    r"uploading|downloading|crdownload|filepart|swp|swo|swx|wip|trash|deleting|deleted|removing"
)
#: Words that say so at the end of a name only; elsewhere they mean other things: ``temp=0.7``, ``part-00000``.
_AT_END = r"temp|lock|download|saving"
#: What may still follow such a word: random letters, or the number of a process or of a moment.
_TRIES = r"([^a-z0-9=]+([0-9]{4,}|[0-9a-f]{6,}|[a-z0-9_]{8}))*[^a-z0-9=]*"
#: Words that say so in front of what will be the name.
_IN_FRONT = r"temp"

_WORD = re.compile(
    rf"(?<![a-z0-9])({_ANYWHERE})(?![a-z0-9=])|(?<![a-z0-9])({_AT_END}){_TRIES}$|(?<=[._])part(\.\w{{1,8}})?$|"
    rf"^[^a-z0-9]*({_IN_FRONT})(?=[-_. ][a-z])",
    re.IGNORECASE,
)
#: What Python's tempfile makes, alone or as an ending.
_TEMPFILE = re.compile(r"(?<![A-Za-z0-9])tmp[a-z0-9_]{8}(?![A-Za-z0-9_])")
#: What mktemp and the like put after a dot: six characters or more in which letters and digits take turns. A time
#: (20250101T120000Z) and words with numbers (epoch10step500) are none.
_RANDOM = re.compile(
    r"\.(?!(\d{8}T\d{4,6}Z?|([a-z]{2,}\d+){2,})$)"
    r"(?=[A-Za-z0-9]{6,}$)(?=.*[A-Za-z][0-9]+[A-Za-z]|.*[0-9][A-Za-z]+[0-9])[A-Za-z0-9]+$"
)
_EDITORS = re.compile(r"~$|^#.*#$|\.(save|saving)$")

#: Why such a name is no checkpoint's, in words.
UNFINISHED = "has the name of something unfinished"

#: How deep below the directory ``**`` looks.
_MAX_DEPTH = 16


@functools.lru_cache(4096)
def is_temporary(name: str) -> bool:
    """Whether a name says that something is not finished, or is being removed."""
    return bool(_WORD.search(name) or _TEMPFILE.search(name) or _RANDOM.search(name) or _EDITORS.search(name))


def is_hidden(name: str) -> bool:
    """Whether shells do not show it."""
    return name.startswith(".")


def is_ours(name: str) -> bool:
    """Whether it is a directory that this package made."""
    return name.startswith(ANNEX_PREFIX) or is_spools_name(name)


def ends_a_save(old: str, new: str) -> bool:
    """Whether a writer says by renaming ``old`` to ``new`` (names or paths) that it has finished: the old name is the
    new one and more, or the new one and a word that says that it is not finished.
    """
    old, new = os.path.basename(old), os.path.basename(new)
    if old == new or is_temporary(new):
        return False
    return new in old or (is_temporary(old) and _core(old) == _core(new))


def _core(name: str) -> str:
    """What is left of a name without what says that it is not finished, and without its punctuation."""
    for rule in (_TEMPFILE, _WORD, _RANDOM, _EDITORS):
        name = rule.sub("", name)
    return re.sub(r"[^A-Za-z0-9]+", "", name)


class Pattern:
    """Which paths below a watched directory are checkpoints.

    Parameters
    ----------
    text : str
        A shell pattern of the relative path: ``checkpoint-*``, ``*.ckpt``, ``run-*/checkpoint-*``; ``**/`` stands for
        any number of folders.

    Raises
    ------
    UsageError
        It can match nothing below the directory.
    """

    def __init__(self, text: str) -> None:
        parts = text.split("/") if isinstance(text, str) else []
        if not parts or any(part in ("", ".", "..") for part in parts) or parts[-1] == "**":
            raise UsageError(
                f"pattern={text!r} is no pattern of names below the directory", hint="E.g. 'checkpoint-*', '**/*.ckpt'"
            )
        self.text = text
        self.depth = _MAX_DEPTH if "**" in parts else len(parts)
        self._parts = parts
        self._means_temporary = is_temporary(parts[-1].replace("*", ""))
        self._means_hidden = any(is_hidden(part) for part in parts)

    def matches(self, relative: str) -> bool:
        """Whether this is the path of a checkpoint that may be finished."""
        return self.fits(relative) and not self.excludes(relative)

    def fits(self, relative: str) -> bool:
        """Whether the pattern fits, whatever the name says."""
        return _fits(self._parts, relative.split("/"))

    def excludes(self, relative: str) -> str:
        """Why something with this path is no checkpoint although the pattern may fit; empty if it can be one."""
        *folders, name = relative.split("/")
        if not self._means_hidden and any(map(is_hidden, [*folders, name])):
            return "is hidden"
        unfinished = is_temporary(name) or any(is_temporary(folder) and _core(folder) for folder in folders)
        return UNFINISHED if unfinished and not self._means_temporary else ""

    def find(self, root: str) -> Iterator[str]:
        """Relative paths of what matches now, none of them inside another.

        Raises
        ------
        OSError
            The directory itself cannot be read; a folder in it that cannot is passed over.
        """
        pending = [("", 1)]
        while pending:
            folder, depth = pending.pop()
            try:
                with os.scandir(os.path.join(root, folder)) as entries:
                    for entry in entries:
                        relative = folder + entry.name
                        if is_ours(entry.name) or entry.is_symlink():
                            continue
                        if self.matches(relative):
                            yield relative
                        elif depth < self.depth and entry.is_dir(follow_symlinks=False):
                            pending.append((f"{relative}/", depth + 1))
            except OSError:
                if not folder:
                    raise


def _fits(parts: Sequence[str], names: Sequence[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return any(_fits(parts[1:], names[skipped:]) for skipped in range(len(names)))
    return fnmatchcase(names[0], parts[0]) and _fits(parts[1:], names[1:])
