"""File systems to run tests on: where the temporary directory is, tmpfs, loop-mounted images, overlays, and FUSE."""

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

#: Those on which a lease may say nothing: overlays whose upper layer is the temporary directory's disk, or an xfs that
#: can clone; a FUSE mount that hands everything on to a directory of the disk (bindfs).
LAYERED = ("overlay", "overlay-xfs", "fuse")

#: NFS 4.2 and 3, of a directory that this very machine serves. Few kernels have both: ``stress/nfs.sh`` starts one.
NFS = ("nfs4", "nfs3")

#: The directories below such mounts, seen directly while others write through the mount.
BELOW = {"overlay-upper": "overlay", "fuse-source": "fuse"}

#: An ext4 whose times are whole seconds, as those have that were made long ago, or small.
SECONDS = "ext4-seconds"

#: File systems on which a file can be cloned.
CLONING = ("xfs", "btrfs")

_MKFS = {
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    SECONDS: ["mkfs.ext4", "-q", "-F", "-I", "128"],
}
_TMPFS = "/dev/shm"


def why_not(kind: str) -> str:
    """Why a file system cannot be had here; empty if it can."""
    if kind == "tmpfs":
        return "" if os.access(_TMPFS, os.W_OK) else f"{_TMPFS} cannot be written to"
    kind = BELOW.get(kind, kind)
    if kind == "disk":
        return ""
    if kind in NFS:
        return "" if os.path.exists("/proc/fs/nfsd/threads") else "no NFS server runs here (stress/nfs.sh starts one)"
    if os.getuid() != 0:
        return f"mounting {kind} needs root"
    if kind == "fuse":
        return "" if shutil.which("bindfs") else "bindfs is not installed"
    if kind == "overlay":
        return ""
    maker = _MKFS[kind.removeprefix("overlay-")][0]
    return "" if shutil.which(maker) else f"{maker} is not installed"


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
    elif kind in LAYERED or kind in NFS:
        with _layered(kind, base, size) as (mounted, _):
            yield mounted
        return
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
def twice(kind: str, base: Path, *, size: int = 512 << 20) -> Iterator[tuple[Path, Path]]:
    """The same, and another path of the same directory: through another mount, or below the layer that is tested.

    Raises
    ------
    CannotMount
        As ``provided``.
    """
    if kind in BELOW:
        with _layered(BELOW[kind], base, size) as (mounted, below):
            yield below, mounted
        return
    if kind == "fuse" or kind in NFS:
        with _layered(kind, base, size) as paths:
            yield paths
        return
    with provided(kind, base, size=size) as place:
        other = Path(tempfile.mkdtemp(dir=base, prefix="other-"))
        try:
            _run(["mount", "--bind", str(place), str(other)])
            try:
                yield place, other
            finally:
                _unmount(other)
        finally:
            os.rmdir(other)


@contextlib.contextmanager
def _layered(kind: str, base: Path, size: int) -> Iterator[tuple[Path, Path]]:
    """A mounted directory, and what it shows."""
    below = "xfs" if kind == "overlay-xfs" else "disk"
    with provided(below, base, size=size) as disk:
        for name in ("lower", "upper", "work"):
            (disk / name).mkdir()
        folder = Path(tempfile.mkdtemp(dir=base, prefix=f"{kind}-"))
        try:
            if kind == "fuse":
                _run(["bindfs", str(disk / "upper"), str(folder)])
            elif kind in NFS:
                # As the root of all that is served: version 4 asks for the folders above, on other file systems.
                served = f"127.0.0.1:{disk / 'upper'}"
                _run(["exportfs", "-i", "-o", "rw,sync,no_root_squash,insecure,no_subtree_check,fsid=0", served])
                at, options = ("127.0.0.1:/", "vers=4.2") if kind == "nfs4" else (served, "vers=3,nolock")
                _run(["mount", "-t", "nfs", "-o", options, at, str(folder)])
            else:
                layers = f"lowerdir={disk / 'lower'},upperdir={disk / 'upper'},workdir={disk / 'work'}"
                _run(["mount", "-t", "overlay", "-o", layers, "overlay", str(folder)])
            try:
                yield folder, disk / "upper"
            finally:
                _unmount(folder)
                if kind in NFS:
                    _run(["exportfs", "-u", served])
        finally:
            os.rmdir(folder)


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
def small_tmpfs(base: Path, size: int, inodes: int = 0) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes, and so many inodes (0: as many as there is room for), to be filled up."""
    folder = Path(tempfile.mkdtemp(dir=base, prefix="small-"))
    try:
        _run(["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes},mode=700", "tmpfs", str(folder)])
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        os.rmdir(folder)


def _run(command: list[str]) -> None:
    # Without the environment by which a task's processes are known: what serves a FUSE mount is none of them.
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise CannotMount(f"{' '.join(command[:3])}: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        # Somebody is still in there; the mount goes as soon as they leave.
        subprocess.run(["umount", "-l", str(folder)], check=True)
