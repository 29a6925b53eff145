"""What a save holds, told by its kind and its number alone: so any process can say whether a checkpoint is whole."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.files.writers import content

#: Kinds and how often each is saved, in shares. The last goes to S3 in parts, and others overtake it on their way.
KINDS = {"small": 30, "linked": 40, "many": 40, "tar": 20, "frozen": 20, "large": 4}
TAR = "tar"

#: How rclone names what it keeps of unfinished uploads in parts; no client of it sees these.
_OF_SERVER = ".rclone_temp_multipart_"

_FROZEN = 1 << 20
_LARGE = (17 << 20) + 5


def files(kind: str, number: int) -> dict[str, bytes]:
    """The files of a save, by their paths. Below 32 KiB they are packed, above they are linked."""
    if kind == "small":
        return {"step": content(number, 100)}
    if kind == "linked":
        return {"weights": content(number, 40 << 10), "step": content(number, 64)}
    if kind == "many":
        sizes = {
            "weights": 100 << 10,
            "sub/optimizer": 36 << 10,
            "sub/deep/scaler": 200,
            "lr": 3000,
            "rng": 31 << 10,
            "none": 0,
        }
        return {path: content(number, size) for path, size in sizes.items()}
    if kind == TAR:
        return {"weights": content(number, 48 << 10), "sub/step": content(number, 100)}
    if kind == "frozen":
        return {"frozen": content(7, _FROZEN), "weights": content(number, 33 << 10)}
    assert kind == "large", kind
    return {"weights": content(number, _LARGE)}


def write(folder: Path, kind: str, number: int, *, in_place: bool) -> None:
    """Write a save's files: over what is there, or to temporary names that are renamed. ``frozen`` is written once."""
    for path, data in files(kind, number).items():
        target = folder / path
        if path == "frozen" and target.exists() and target.stat().st_size == len(data):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if in_place:
            target.write_bytes(data)
        else:
            temporary = folder.parent / f"{folder.name}.new"  # Outside: it is not to be saved if we are killed here.
            temporary.write_bytes(data)
            os.replace(temporary, target)


def fault_of(folder: Path, kind: str, number: int) -> str:
    """What is wrong with files that should be those of a save; empty: nothing."""
    wanted = files(kind, number)
    for path, data in wanted.items():
        try:
            found = (folder / path).read_bytes()
        except OSError as error:
            return f"{path}: {error.strerror}"
        if found != data:
            return f"{path}: other content"
    found_files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    more = {path for path in found_files if not path.startswith(_OF_SERVER)} - wanted.keys()
    return f"not of this save: {sorted(more)}" if more else ""


def fault_in_store(root: Path, reference: Mapping[str, Any]) -> str:
    """What is wrong with a checkpoint whose metadata can be seen; ``root`` is the store's. Empty: nothing."""
    kind, number = reference["metadata"]["kind"], reference["metadata"]["number"]
    place = root / reference["key"]
    if kind != TAR:
        return fault_of(place, kind, number)
    wanted = files(kind, number)
    try:
        with tarfile.open(place, "r:") as tar:
            found = {m.name: reader.read() for m in tar if m.isreg() and (reader := tar.extractfile(m)) is not None}
    except (OSError, tarfile.TarError) as error:
        return f"tar: {error}"
    return "" if found == wanted else f"tar: other content in {sorted(found)}"
