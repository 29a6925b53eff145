"""PEFT (LoRA and others): the frozen base is saved once for a task, and each checkpoint has the adapters alone.

With Hugging Face's Trainer the adapters are what ``transformers.CheckpointCallback`` saves. ``save_adapter`` and
``load_adapter`` are for loops of one's own.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from ..errors import IntegrityError, UsageError
from ._task import check_version, checkpoints, rank

log = logging.getLogger(__name__)

#: The oldest and the newest version that were tried.
TRIED = ("0.18", "0.21")

_STATE = "state.pt"
_CONFIG = "adapter_config.json"
#: So many bytes of a tensor are digested at a time.
_CHUNK = 1 << 24


def frozen_base(make: Callable[[], Any], name: str = "base", copy: bool = True) -> Any:
    """The base model that adapters are trained on: the same in each attempt.

    The first attempt makes it and saves it, once, before any adapter; a retry gets it from there. Give it to
    ``peft.get_peft_model``. Call it in all ranks; the first one saves.

    Parameters
    ----------
    make : callable
        Makes or downloads the base, a model with ``save_pretrained`` and ``from_pretrained`` as those of transformers.
    name : str
        Of the base's checkpoint. It is saved with ``latest=False``, so no attempt resumes from it.
    copy : bool
        False: only a digest of it is saved, and a retry makes it again and compares. For a base that can be had again
        at any time, by a hub's id and revision.

    Raises
    ------
    IntegrityError
        With ``copy=False``: what was made is not what the adapters were trained on.
    UsageError
        This process belongs to no step with ``@checkpoint``.
    CheckpointError
        It cannot be saved or loaded.
    """
    check_version("peft", peft.__version__, *TRIED)
    here = checkpoints()
    saved = _saved_base(here, name)
    if saved is not None and "class" in saved["metadata"]:
        with tempfile.TemporaryDirectory(prefix="async_ckpt_base_") as directory:
            here.load(saved, directory)
            base = _class_of(saved["metadata"]["class"]).from_pretrained(directory, dtype="auto")
            # Else it would have no dropout, where the one that was made has.
            return base.train(saved["metadata"]["training"])
    if saved is None and here.resume_info() is not None:
        log.warning(
            f"What is resumed from was saved without its base: nothing is named {name!r}. The base is made anew, and "
            "nobody knows whether it is the same"
        )
    base = make()
    digest = "" if copy and saved is None else _digest(base)
    if saved is not None:
        if saved["metadata"].get("digest") != digest:
            raise IntegrityError(
                "The base model is not the one that the adapters were trained on: its weights have another digest",
                where=saved["key"],
                hint="Name the revision that you download, or let frozen_base() keep a copy",
            )
        return base
    if rank() == 0:
        with tempfile.TemporaryDirectory(prefix="async_ckpt_base_") as directory:
            if copy:
                base.save_pretrained(directory)
                place = f"{type(base).__module__}:{type(base).__qualname__}"
                metadata = {"class": place, "training": base.training}
            else:
                metadata = {"digest": digest, "made_of": str(getattr(base, "name_or_path", ""))}
            here.save(directory, name=name, metadata=metadata, latest=False)
    return base


def save_adapter(
    model: PeftModel,
    state: Mapping[str, Any] | None = None,
    name: str = "mfchckpt",
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Save the adapters of a model, in PEFT's own files, and what else a loop resumes from.

    Parameters
    ----------
    model : PeftModel
        Its adapters are saved, and nothing of its base.
    state : mapping, optional
        What ``torch.save`` takes and ``torch.load(weights_only=True)`` gives back: the optimizer's state, the epoch.
    name, metadata
        As for ``current.checkpoint.save``.

    Returns
    -------
    Reference
        As ``current.checkpoint.save`` returns it.

    Raises
    ------
    CheckpointError
        See ``current.checkpoint.save``.
    """
    check_version("peft", peft.__version__, *TRIED)
    # What is captured stays when this directory goes.
    with tempfile.TemporaryDirectory(prefix="async_ckpt_adapter_") as directory:
        model.save_pretrained(directory)
        if state is not None:
            torch.save(dict(state), os.path.join(directory, _STATE))
        return checkpoints().save(directory, name=name, metadata=metadata)


def load_adapter(model: PeftModel) -> dict[str, Any] | None:
    """Load what this attempt resumes from into the adapters of a model.

    Returns
    -------
    dict or None
        The ``state`` that was saved with them (empty where none was); None where there is nothing to resume from.

    Raises
    ------
    UsageError
        What was loaded has no adapters, or not those of this model.
    CheckpointError
        See ``current.checkpoint.resume_path``.
    """
    check_version("peft", peft.__version__, *TRIED)
    path = checkpoints().resume_path()
    if path is None:
        return None
    for adapter in model.peft_config:
        # The first one lies at the top, others in folders of their names.
        folder = path if adapter == "default" else os.path.join(path, adapter)
        if not os.path.isfile(os.path.join(folder, _CONFIG)):
            raise UsageError(
                f"What was loaded has no adapter {adapter!r}: {_CONFIG} is missing",
                where=folder,
                hint="Save it with save_adapter(); other checkpoints of the step need latest=False",
            )
        if why := _fill(model, adapter, folder):
            raise UsageError(
                f"The adapter {adapter!r} that was loaded is not the one of this model: {why}",
                where=folder,
                hint="Make the model with the same configuration",
            )
    file = os.path.join(path, _STATE)
    return dict(torch.load(file, weights_only=True)) if os.path.isfile(file) else {}


def _saved_base(here: Any, name: str) -> Any:
    """The base that this task has saved, or the task whose checkpoint it resumes from; None where there is none."""
    if found := here.list(name=name):
        return found[0]
    info = here.resume_info()
    if info is None or not info.pathspec:
        return None
    found = here.list(name=name, task=info.pathspec, attempt="all")
    return found[0] if found else None


def _fill(model: PeftModel, adapter: str, folder: str) -> str:
    """Load the weights of an adapter; returns why they do not fit, or nothing."""
    try:
        found = set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"), adapter_name=adapter)
    except RuntimeError as error:  # Of other shapes.
        return str(error)
    missing = [name for name in found.missing_keys if f".{adapter}." in name]
    if missing or found.unexpected_keys:
        return f"{len(missing)} of its weights are missing, and {len(found.unexpected_keys)} are none of it"
    return ""


def _class_of(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"The class of the base model, {place}, cannot be imported: {error}",
            hint="Define it in a module that can be imported, not in the flow's own file",
        ) from error


def _digest(model: Any) -> str:
    """Of all weights, by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        for part in flat.split(_CHUNK):
            digest.update(part.cpu().numpy())
    return digest.hexdigest()
