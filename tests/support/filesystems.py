"""File systems to run tests on: where the temporary directory is, tmpfs, and loop-mounted images of xfs and btrfs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: ``disk`` is the file system of the temporary directory, whatever it is (ext4 on most machines).
FILESYSTEMS = ("disk", "tmpfs", "xfs", "btrfs")

#: File systems on which a file can be cloned.
CLONING = ("xfs", "btrfs")

_MKFS = {"xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}
_TMPFS = "/dev/shm"


def why_not(kind: str) -> str:
    """Why a file system cannot be had here; empty if it can."""
    if kind == "tmpfs":
        return "" if os.access(_TMPFS, os.W_OK) else f"{_TMPFS} cannot be written to"
    if kind == "disk":
        return ""
    if os.getuid() != 0:
        return f"mounting {kind} needs root"
    return "" if shutil.which(_MKFS[kind][0]) else f"{_MKFS[kind][0]} is not installed"


class CannotMount(Exception):
    """This machine refuses loop mounts, e.g. in a container."""


@contextlib.contextmanager
def provided(kind: str, base: Path, *, size: int = 512 << 20) -> Iterator[Path]:
    """An empty directory on a file system of that kind; unmounted and removed at the end of the block.

    Raises
    ------
    CannotMount
        The image could not be made or mounted.
    """
    if kind == "disk":
        folder = Path(tempfile.mkdtemp(dir=base, prefix="disk-"))
    elif kind == "tmpfs":
        folder = Path(tempfile.mkdtemp(dir=_TMPFS, prefix="async-ckpt-test-"))
    else:
        with _image(kind, base, size) as mounted:
            yield mounted
        return
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _image(kind: str, base: Path, size: int) -> Iterator[Path]:
    fd, image = tempfile.mkstemp(dir=base, prefix=f"{kind}-", suffix=".img")
    os.truncate(fd, size)
    os.close(fd)
    folder = Path(tempfile.mkdtemp(dir=base, prefix=f"{kind}-"))
    try:
        _run([*_MKFS[kind], image])
        _run(["mount", "-o", "loop", image, str(folder)])
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        os.unlink(image)
        os.rmdir(folder)


@contextlib.contextmanager
def small_tmpfs(base: Path, size: int) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes, to be filled up."""
    folder = Path(tempfile.mkdtemp(dir=base, prefix="small-"))
    try:
        _run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)])
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        os.rmdir(folder)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMount(f"{' '.join(command[:3])}: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        # Somebody is still in there; the mount goes as soon as they leave.
        subprocess.run(["umount", "-l", str(folder)], check=True)
