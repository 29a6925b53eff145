"""Hugging Face's Trainer: a callback that saves every checkpoint the Trainer writes, and what it resumes from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch.distributed
import transformers
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from ..errors import UsageError
from . import _nodes
from ._task import check_version, checkpoints

log = logging.getLogger(__name__)

#: The oldest and the newest version that were tried.
TRIED = ("4.57", "5.24")

_STATE = "trainer_state.json"
#: What the Trainer logs that differs from rank to rank, or tells nothing of a checkpoint.
_NOT_KEPT = ("_runtime", "_per_second", "_time")


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Saves every checkpoint that the Trainer writes, as soon as it is written.

    What a checkpoint holds is what the Trainer writes (``save_strategy``, ``save_steps``), and how many of them stay on
    the disk is the Trainer's matter as well (``save_total_limit``): what it removes is saved already. On several nodes
    each saves the files that it has, and they are one checkpoint (a collective one).

    Parameters
    ----------
    name : str
        Of the checkpoints.
    metadata : mapping, optional
        Is kept with each, beside the Trainer's ``checkpoint`` (the directory's name), ``global_step``, ``epoch`` and
        what it has logged last (``loss``, ``eval_…``).

    Raises
    ------
    UsageError
        This process belongs to no step with ``@checkpoint``.
    """

    def __init__(self, name: str = "mfchckpt", metadata: Mapping[str, Any] | None = None) -> None:
        check_version("transformers", transformers.__version__, *TRIED)
        checkpoints()  # Says now, not after hours, that nothing can be saved here.
        self._name, self._metadata = name, dict(metadata or {})
        #: The reference of the newest; None in processes that save nothing.
        self.saved: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.save_only_model:
            log.warning(
                "The Trainer has save_only_model=True: what it saves has no optimizer, and a training that resumes "
                "from it does not go on as if it had not been interrupted"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoints().step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        directory = _written_by(args, state)
        if _nodes.count() > 1:
            # Each rank writes a file of its own, and the first may come here before the others have.
            torch.distributed.barrier()
        self.saved = _nodes.save_together(
            directory,
            {**_metadata(directory, state), **self._metadata},
            first_of_node=args.local_process_index == 0,
            rank=args.process_index,
            name=self._name,
        )


def resume_path(trainer: Trainer) -> str | None:
    """What ``trainer.train(resume_from_checkpoint=…)`` wants: a directory of the Trainer's, or None.

    Call it in all ranks. The best checkpoint so far, which ``load_best_model_at_end`` needs, is laid into
    ``output_dir`` where it is not there any more.

    Raises
    ------
    UsageError
        What was loaded is no checkpoint of a Trainer; or this process belongs to no step with ``@checkpoint``.
    CheckpointError
        See ``current.checkpoint.resume_path`` and ``load``.
    """
    check_version("transformers", transformers.__version__, *TRIED)
    with trainer.args.main_process_first(local=True, desc="finding what to resume from"):
        path: str | None = checkpoints().resume_path()
        if path is None:
            return None
        if not os.path.isfile(os.path.join(path, _STATE)):
            # Flows that save the whole output_dir have several in it.
            newest = get_last_checkpoint(path) if os.path.isdir(path) else None
            if newest is None or not os.path.isfile(os.path.join(newest, _STATE)):
                raise UsageError(
                    f"What was loaded is no checkpoint of a Trainer: it has no {_STATE}",
                    where=path,
                    hint="Save what the Trainer writes (CheckpointCallback does); other checkpoints of the step need "
                    "latest=False",
                )
            path = newest
        if trainer.args.load_best_model_at_end and trainer.args.local_process_index == 0:
            _lay_out_best(path, trainer.args.output_dir)
        return path


def _lay_out_best(resumed: str, output_dir: str) -> None:
    """See that the best checkpoint is where the state of the one that is resumed says; or say that it is gone."""
    with open(os.path.join(resumed, _STATE)) as file:
        state = json.load(file)
    recorded = state.get("best_model_checkpoint")
    if recorded is None:
        return
    name = os.path.basename(os.path.normpath(recorded))
    best = os.path.join(output_dir, name)
    if not os.path.isfile(os.path.join(best, _STATE)):
        here = checkpoints()
        found = next((one for one in here.list() if (one.get("metadata") or {}).get("checkpoint") == name), None)
        if found is None:
            log.warning(
                f"The best checkpoint so far, {name}, is not among this task's: load_best_model_at_end forgets it"
            )
            return
        here.load(found, best)
    if best != recorded:
        state["best_model_checkpoint"] = best
        staged = os.path.join(resumed, f".{_STATE}.new")
        with open(staged, "w") as file:
            json.dump(state, file, indent=2)
        os.replace(staged, os.path.join(resumed, _STATE))


def _written_by(args: TrainingArguments, state: TrainerState) -> str:
    """Where the Trainer has just written a checkpoint."""
    directory = os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    if state.is_world_process_zero and not os.path.isdir(directory):
        raise UsageError(
            "The Trainer has not written its checkpoint where it usually does",
            where=directory,
            hint="Of a hyperparameter search, save the best model when it is over",
        )
    return directory


def _metadata(directory: str, state: TrainerState) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for entry in state.log_history[-50:]:
        kept.update({key: value for key, value in entry.items() if not key.endswith(_NOT_KEPT)})
    return {**kept, "checkpoint": os.path.basename(directory), "global_step": state.global_step, "epoch": state.epoch}
