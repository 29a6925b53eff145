"""Files that belong together: one checkpoint, although no directory of its own holds them.

Known by themselves (``group="auto"``):

- TensorFlow: ``ckpt-2.index``, ``ckpt-2.data-00000-of-00002``, … (and ``ckpt-2.meta``). It is finished only with its
  index and all its parts. ``checkpoint``, the file beside it that says which is the newest, goes with the one it names.
- DeepSpeed: the directory ``global_step500`` and ``latest`` beside it; Megatron: ``iter_0000500`` and
  ``latest_checkpointed_iteration.txt``. That file goes with the one it names.
- Keras: ``model-2.weights.h5`` (or ``.h5``) and ``model-2.json`` beside it, where there is such a file.

Others by a regular expression, of which the first group (or all of it) is what the names of one checkpoint have in
common: ``group=r"(step-\\d+)[.-]"``. What belongs to one lies in one folder.

Such a checkpoint is a directory that has its files, under their names, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ..errors import UsageError
from .names import is_hidden, is_temporary
from .tree import Tree

_TENSORFLOW = re.compile(r"(?P<key>.+)\.(index|meta|data-(?P<part>\d{5})-of-(?P<parts>\d{5}))")
_KERAS = re.compile(r"(?P<key>.+?)(\.weights)?\.(h5|json)")
_TRACKED = re.compile(r"(global_step|iter_)(?P<number>\d+)")

#: Files that say which is the newest are read up to so many bytes.
_MAX_TRACKER = 64 << 10


class Group(NamedTuple):
    """``members``: names in its folder; ``lacks``: one that must come yet; ``beside``: small files, by name, that say
    that it is the newest.
    """

    members: tuple[str, ...]
    lacks: str = ""
    beside: Mapping[str, bytes] = {}


class Grouping:
    """Which files of a folder belong together.

    Parameters
    ----------
    text : str or None
        ``"auto"``, a regular expression, or None: each is by itself.

    Raises
    ------
    UsageError
        It is none of these.
    """

    def __init__(self, text: str | None) -> None:
        self._rule: re.Pattern[str] | None = None
        self._auto = text == "auto"
        if text is None or self._auto:
            return
        try:
            self._rule = re.compile(text)
        except (re.error, TypeError) as error:
            raise UsageError(
                f"group={text!r} is no regular expression of names: {error}", hint=r"E.g. group=r'(step-\d+)\.'"
            ) from error

    def arrange(self, folder: str, matched: Collection[str]) -> dict[str, Group]:
        """The groups in a folder to which one of the names that ``matched`` belongs, by the name that they have in
        common; what is in none is by itself.
        """
        wanted = {self._key(name) for name in matched} - {""}
        if not wanted:
            return {}
        together: dict[str, list[str]] = {}
        with contextlib.suppress(OSError):  # It has just gone; the next look will tell.
            for name in sorted(os.listdir(folder)):
                if (key := self._key(name)) in wanted and not is_hidden(name) and not is_temporary(name):
                    together.setdefault(key, []).append(name)
        if self._rule is not None:
            return {key: Group(tuple(names)) for key, names in together.items()}
        known = {key: _known(folder, key, names) for key, names in together.items()}
        return {key: group for key, group in known.items() if group is not None}

    def _key(self, name: str) -> str:
        """What a name has in common with those it belongs to; empty: it belongs to none."""
        if self._rule is not None:
            found = self._rule.search(name)
            return (found[1] if self._rule.groups else found[0]) or "" if found else ""
        if not self._auto:
            return ""
        found = _TENSORFLOW.fullmatch(name) or _KERAS.fullmatch(name)
        return found["key"] if found else name if _TRACKED.fullmatch(name) else ""


def _known(folder: str, key: str, names: list[str]) -> Group | None:
    """A group of a shape that is known; None: the names only look like it."""
    if parts := [found for name in names if (found := _TENSORFLOW.fullmatch(name))]:
        shards = {int(found["part"]) for found in parts if found["part"]}
        if not shards:
            return None  # Another program's index.
        count = max(int(found["parts"]) for found in parts if found["parts"])
        lacks = [f"{key}.data-{n:05d}-of-{count:05d}" for n in range(count) if n not in shards]
        lacks += [f"{key}.index"] if f"{key}.index" not in names else []
        members = tuple(found.string for found in parts)
        return Group(members, next(iter(lacks), ""), _tracker(folder, "checkpoint", _names_tensorflow(key)))
    if found := _TRACKED.fullmatch(key):
        if not os.path.isdir(os.path.join(folder, key)):
            return None
        if key.startswith("iter_"):
            number = int(found["number"])
            trackers = _tracker(folder, "latest_checkpointed_iteration.txt", lambda text: _is_number(text, number))
        else:
            trackers = _tracker(folder, "latest", lambda text: text.strip() == key)
        return Group((key,), "", trackers)
    return Group(tuple(names)) if len(names) > 1 and any(name.endswith(".json") for name in names) else None


def _names_tensorflow(key: str) -> Callable[[str], bool]:
    line = re.compile(rf'^model_checkpoint_path: "([^"]*/)?{re.escape(key)}"', re.MULTILINE)
    return lambda text: line.search(text) is not None


def _is_number(text: str, number: int) -> bool:
    return text.strip().isdecimal() and int(text) == number


def _tracker(folder: str, name: str, names_it: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of a file that says which is the newest, if it says so of this one."""
    with contextlib.suppress(OSError):
        path = os.path.join(folder, name)
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                content = file.read(_MAX_TRACKER)
            if names_it(content.decode("utf-8", "replace")):
                return {name: content}
    return {}


def must_come(tree: Tree) -> str:
    """A file without which what is there is not finished, whatever else tells: PyTorch's distributed checkpoints have
    ``.metadata`` beside their ``*.distcp``, written last. Empty if there is none.
    """
    folders = {os.path.dirname(path) for path in tree if path.endswith(".distcp")}
    wanted = sorted(os.path.join(folder, ".metadata") for folder in folders)
    return next((path for path in wanted if path not in tree), "")


def is_under_way(tree: Tree) -> list[str]:
    """Files in it whose names say that they are not finished."""
    return [path for path in tree if is_temporary(os.path.basename(path))]
