"""What a spool needs of its mount is tried at the start; what cannot be done there is said, with a way out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_ckpt.errors import SpoolError
from async_ckpt.spool import abilities, place
from async_ckpt.stores.base import StoreSpec
from harness.common.log_lines import collected
from harness.files.filesystems import CannotMount, provided, why_not
from harness.tasks.task import TASK

STORE = StoreSpec("local", "/store")


def test_a_local_disk_can_do_everything_and_keeps_nothing_of_the_trial(filesystem: Path) -> None:
    assert abilities.try_out(str(filesystem)) == []
    assert os.listdir(filesystem) == []


def refuse(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


class NoSockets(socket.socket):
    def bind(self, address: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


LACKING: dict[str, tuple[object, str, object]] = {
    "symbolic links": (os, "symlink", refuse(errno.EPERM)),
    "lock files (flock) (No locks available)": (fcntl, "flock", refuse(errno.ENOLCK)),
    "lock files (flock) (it has no effect)": (fcntl, "flock", lambda fd, how: None),
    "renaming": (os, "rename", refuse(errno.EOPNOTSUPP)),
    "Unix sockets": (socket, "socket", NoSockets),
}


@pytest.mark.parametrize("what", LACKING)
def test_a_place_that_lacks_something_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with monkeypatch.context() as lacking:
        lacking.setattr(*LACKING[what])  # type: ignore[arg-type]
        with pytest.raises(SpoolError) as caught:
            abilities.try_out(str(tmp_path))
    assert what in caught.value.what
    assert "METAFLOW_ASYNC_CKPT_SPOOL_DIR" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_a_place_without_space_is_not_said_to_lack_an_ability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        abilities.try_out(str(tmp_path))


def make(*bases: Path) -> tuple[str, list[str]]:
    with collected() as said:
        spool = place.make([[str(base / "async-ckpt-0")] for base in bases], TASK, STORE)
    return os.path.dirname(os.path.dirname(spool.directory)), said


@contextlib.contextmanager
def mounted(tmp_path: Path, *options: str) -> Iterator[Path]:
    """A FUSE mount with something in its way."""
    if reason := why_not("fuse"):
        pytest.skip(reason)
    for name in ("source", "mounted"):
        (tmp_path / name).mkdir()
    command = ["bindfs", *options, str(tmp_path / "source"), str(tmp_path / "mounted")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine refuses FUSE mounts")
    try:
        yield tmp_path / "mounted"
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


def test_a_mount_that_really_cannot_rename_is_no_place_for_a_spool(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path, "--rename-deny") as place:
        chosen, said = make(place, tmp_path / "disk")
        assert chosen == str(tmp_path / "disk")
        (line,) = said
        assert "cannot be where it should be" in line
        assert "its file system (FUSE) cannot replace files by renaming" in line
        with pytest.raises(SpoolError, match="cannot replace files by renaming"):
            make(place)


def test_a_mount_that_lets_others_read_everything_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path, "--perms=go+rX", "--chmod-ignore") as place:
        _, said = make(place)
    assert [line for line in said if "Other users of this machine may read what is saved" in line]


@pytest.mark.parametrize(("kind", "what"), [("overlay", "overlayfs"), ("fuse", "another machine"), ("overlay-xfs", "")])
def test_where_files_can_only_be_copied_the_start_says_so(tmp_path: Path, kind: str, what: str) -> None:
    if reason := why_not(kind):
        pytest.skip(reason)
    try:
        with provided(kind, tmp_path) as folder:
            _, said = make(folder)
    except CannotMount as error:
        pytest.skip(str(error))
    assert len(said) == bool(what)
    assert all(what in line and "as long as copying" in line for line in said)
