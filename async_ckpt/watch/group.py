"""Files that belong together: they are one checkpoint, although no directory of its own holds them.

These are known (``group="auto"``):

- TensorFlow: ``ckpt-2.index``, ``ckpt-2.data-00000-of-00002``, … (and ``ckpt-2.meta``). Such a checkpoint is finished
  only with its index and all its parts. Its *tracker*, the file that names the newest checkpoint, is ``checkpoint``.
- DeepSpeed: the directory ``global_step500``, with ``latest`` as the tracker. Megatron: ``iter_0000500``, with
  ``latest_checkpointed_iteration.txt``.
- Keras: ``model-2.weights.h5`` (or ``.h5``) with ``model-2.json``, where there is such a file.

Others are told by a regular expression. Its first group (or all of it) is what the names of one checkpoint have in
common: ``group=r"(step-\\d+)[.-]"``. The files of one checkpoint lie in one folder.

Such a checkpoint is saved as a directory that has its files, under their names, and the tracker if that names it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ..errors import UsageError
from .names import is_hidden, is_temporary
from .tree import Tree

_TENSORFLOW = re.compile(r"(?P<key>.+)\.(index|meta|data-(?P<part>\d{5})-of-(?P<parts>\d{5}))")
_KERAS = re.compile(r"(?P<key>.+?)(\.weights)?\.(h5|json)")
_TRACKED = re.compile(r"(global_step|iter_)(?P<number>\d+)")

#: How many bytes of a tracker are read at most.
_MAX_TRACKER_BYTES = 64 << 10


class Group(NamedTuple):
    """Files that belong together."""

    #: Their names in the folder.
    members: tuple[str, ...]
    #: One that must still come.
    lacks: str = ""
    #: The content of each tracker that names this checkpoint, by its name.
    trackers: Mapping[str, bytes] = {}


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
        """The groups in a folder that have one of the names in ``matched``, by what their names have in common. A name
        that is in none of them is a checkpoint by itself.
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
        """What a name has in common with the others of its group; empty: it is in none."""
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
        return _tensorflow(folder, key, parts)
    if found := _TRACKED.fullmatch(key):
        return _tracked(folder, key, int(found["number"]))
    return Group(tuple(names)) if len(names) > 1 and any(name.endswith(".json") for name in names) else None


def _tensorflow(folder: str, key: str, parts: list[re.Match[str]]) -> Group | None:
    shards = {int(found["part"]) for found in parts if found["part"]}
    if not shards:
        return None  # Another program's index.
    names = tuple(found.string for found in parts)
    count = max(int(found["parts"]) for found in parts if found["parts"])
    wanted = [*(f"{key}.data-{n:05d}-of-{count:05d}" for n in range(count) if n not in shards), f"{key}.index"]
    lacks = next((name for name in wanted if name not in names), "")
    names_it = rf'^model_checkpoint_path: "([^"]*/)?{re.escape(key)}"'
    return Group(names, lacks, _trackers(folder, "checkpoint", names_it))


def _tracked(folder: str, key: str, number: int) -> Group | None:
    if not os.path.isdir(os.path.join(folder, key)):
        return None
    if key.startswith("iter_"):
        return Group((key,), "", _trackers(folder, "latest_checkpointed_iteration.txt", rf"\A\s*0*{number}\s*\Z"))
    return Group((key,), "", _trackers(folder, "latest", rf"\A\s*{key}\s*\Z"))


def _trackers(folder: str, name: str, names_it: str) -> dict[str, bytes]:
    """A tracker and its content, if that names this checkpoint: the regular expression fits."""
    with contextlib.suppress(OSError):
        path = os.path.join(folder, name)
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                content = file.read(_MAX_TRACKER_BYTES)
            if re.search(names_it, content.decode("utf-8", "replace"), re.MULTILINE):
                return {name: content}
    return {}


def must_come(tree: Tree) -> str:
    """A file that must still come, whatever else tells that this is finished; empty if none. PyTorch's distributed
    checkpoints have ``.metadata`` beside their ``*.distcp``, and write it last.
    """
    folders = {os.path.dirname(path) for path in tree if path.endswith(".distcp")}
    wanted = sorted(os.path.join(folder, ".metadata") for folder in folders)
    return next((path for path in wanted if path not in tree), "")
