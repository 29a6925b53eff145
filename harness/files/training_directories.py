"""Directories as training tools leave them, made by hand of random bytes; and how to describe one."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

#: Where small files and large ones are captured differently.
_SMALL, _LARGE = 1_000, 100_000
_REVISION = "5f91d94bd9cd7190a9f3216ff93cd1dd95f2c7be"


def _write(path: Path, size: int) -> None:
    """A file with content, mode and time of its own, which follow from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(path.name).randbytes(size))
    path.chmod(0o640)


def hf_cache(root: Path) -> Path:
    """A repository in the cache of `huggingface_hub`: files are blobs, and a snapshot has links to them."""
    repository = root / "models--org--tiny"
    snapshot = repository / "snapshots" / _REVISION
    snapshot.mkdir(parents=True)
    for name, size in (("config.json", _SMALL), ("model.safetensors", _LARGE), ("onnx/model.onnx", _LARGE)):
        blob = repository / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        _write(blob, size)
        link = snapshot / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(_REVISION)
    return repository


def hf_snapshot(root: Path) -> Path:
    """The snapshot alone, as `snapshot_download` returns it: all that it has are links to what lies beside it."""
    return hf_cache(root) / "snapshots" / _REVISION


def lora(root: Path) -> Path:
    """An adapter, with links to its base model and to the tokenizer: absolute and relative, all lead elsewhere."""
    adapter, base = root / "adapter", root / "base-model"
    for name, size in (("model.safetensors", _LARGE), ("config.json", _SMALL), ("deep/er/extra.bin", _SMALL)):
        _write(base / name, size)
    _write(root / "shared" / "tokenizer.json", _LARGE)
    _write(root / "shared" / "vocabulary.txt", _SMALL)
    _write(adapter / "adapter_model.safetensors", _LARGE)
    _write(adapter / "adapter_config.json", _SMALL)
    (adapter / "base").symlink_to(base)
    (adapter / "again").symlink_to("../base-model")
    (adapter / "tokenizer.json").symlink_to("../shared/tokenizer.json")
    (adapter / "vocabulary.txt").symlink_to(root / "shared" / "vocabulary.txt")
    return adapter


def lightning(root: Path) -> Path:
    """Lightning's ModelCheckpoint with `save_last="link"`."""
    outputs = root / "outputs"
    for epoch in (2, 3):
        _write(outputs / f"epoch={epoch}-step={epoch * 10}.ckpt", _LARGE)
    (outputs / "last.ckpt").symlink_to("epoch=3-step=30.ckpt")
    return outputs


def lightning_absolute(root: Path) -> Path:
    """The same outputs with an absolute link, and another one to a folder, as other tools write them."""
    outputs = root / "outputs"
    for step in (10, 20):
        _write(outputs / f"step-{step}" / "weights.ckpt", _LARGE)
        _write(outputs / f"step-{step}" / "state.json", _SMALL)
    (outputs / "last.ckpt").symlink_to(outputs / "step-20" / "weights.ckpt")
    (outputs / "LATEST").symlink_to(outputs / "step-20")
    return outputs


def dcp(root: Path) -> Path:
    """torch.distributed.checkpoint: what two ranks wrote, and a hidden file that says what is where."""
    step = root / "step-20"
    for name, size in (("__0_0.distcp", _LARGE), ("__1_0.distcp", _LARGE), (".metadata", _SMALL)):
        _write(step / name, size)
    return step


#: Makes what is saved below an empty folder, which may hold other things as well; and links that come back as such.
SHAPES: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "hf-snapshot": (hf_snapshot, {}),
    "hf-cache": (
        hf_cache,
        {
            f"snapshots/{_REVISION}/{name}": "../" * (2 + name.count("/"))
            + f"blobs/{hashlib.sha256(name.encode()).hexdigest()}"
            for name in ("config.json", "model.safetensors", "onnx/model.onnx")
        },
    ),
    "lora": (lora, {}),
    "lightning": (lightning, {"last.ckpt": "epoch=3-step=30.ckpt"}),
    "lightning-absolute": (lightning_absolute, {"last.ckpt": "step-20/weights.ckpt", "LATEST": "step-20"}),
    "dcp": (dcp, {}),
}


def make(root: Path) -> dict[str, Path]:
    """All shapes, each below a folder of its own, and all with old times. Returns what is to be saved."""
    made = {}
    for name, (shape, _) in SHAPES.items():
        folder = root / name
        folder.mkdir(parents=True)
        made[name] = shape(folder)
    for number, (path, folders, files) in enumerate(os.walk(root, topdown=False)):
        for offset, name in enumerate([*folders, *files]):
            moment = 1_600_000_000_500_000_000 + (number * 100 + offset) * 1_000_000_000
            os.utime(os.path.join(path, name), ns=(moment, moment))
    return made


def content(directory: Path) -> dict[str, str]:
    """Path → digest, of all files that somebody finds who opens what is there, through links as well."""
    return {
        os.path.relpath(os.path.join(folder, name), directory): _digest(Path(folder, name))
        for folder, _, names in os.walk(directory, followlinks=True)
        for name in names
    }


def links(directory: Path) -> dict[str, str]:
    """Path → text, of all links."""
    paths = [Path(folder, name) for folder, folders, names in os.walk(directory) for name in [*folders, *names]]
    return {str(path.relative_to(directory)): os.readlink(path) for path in paths if path.is_symlink()}


def modes_and_times(directory: Path) -> dict[str, list[int]]:
    """Path → mode and time in seconds, of all files and folders that somebody finds, through links as well."""
    found = {}
    for folder, folders, names in os.walk(directory, followlinks=True):
        for name in [*folders, *names]:
            status = os.stat(os.path.join(folder, name))
            moment = int(status.st_mtime)
            found[os.path.relpath(os.path.join(folder, name), directory)] = [stat.S_IMODE(status.st_mode), moment]
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
