"""The recipes of all frameworks' pages, killed at random moments: is each loss curve the uninterrupted one?

    python -m stress.integrations [--rounds 5] [--kills 2] [--recipes lightning keras] [--minutes 60] [--seed N]

Needs what the tests need, and the frameworks (``ASYNC_CKPT_FRAMEWORKS_VENV`` names an environment that has them). Each
recipe runs once left alone, and then once a round with SIGKILL to what trains (the step's own process, or a rank), in
each of several attempts, or starts of the ranks by torchrun in one: right after a step's backward pass, or up to 0.3 s
later. Every loss of every attempt is compared with the uninterrupted one's, float for float. Exit status 1 if one
differs, a step was left out, or a run did not end well.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from harness.flow_runs.frameworks import FRAMEWORKS, find_or_make_with_ours
from harness.flow_runs.metaflow_env import FLOWS, Workspace
from harness.integrations.curves import Kill, Training, by_torchrun, example, resumed_from, train
from stress.bench import results
from stress.bench.environment import caveats, work_directory

COMMAND = "python -m stress.integrations"
#: As often each flow tries its step again.
MOST_KILLS = 3
#: A kill comes this long after a step's loss was computed at most: while the optimizer, a save or the next step runs.
MOST_AFTER_S = 0.3


@dataclass(frozen=True)
class Recipe:
    """A flow, and how it is run; ``ranks`` says how many processes train together, and ``again`` whether torchrun
    starts them again, all in one attempt.
    """

    flow: Path
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1
    again: bool = False


TORCHRUN = FLOWS / "torchrun_flow.py"
STATES = FLOWS / "collective_state_flow.py"
RECIPES = {
    "transformers": Recipe(example("transformers")),
    "transformers, 2 ranks": Recipe(TORCHRUN, env={"EXAMPLE": "transformers"}, ranks=2),
    "transformers, 2 nodes": Recipe(
        FLOWS / "torchrun_gang_flow.py",
        env={"EXAMPLE": "transformers", "METAFLOW_ASYNC_CKPT_COLLECTIVE_GRACE_S": "2"},
        ranks=2,
    ),
    "PEFT, the Trainer": Recipe(example("peft"), ("--by-hand", "False")),
    "PEFT, a loop": Recipe(example("peft"), ("--by-hand", "True")),
    "Lightning": Recipe(example("lightning")),
    "Lightning, 2 ranks": Recipe(TORCHRUN, env={"EXAMPLE": "lightning"}, ranks=2),
    "Keras": Recipe(example("keras")),
    "Accelerate": Recipe(example("accelerate")),
    "Accelerate, 2 ranks": Recipe(example("accelerate"), ("--ranks", "2"), ranks=2),
    "Accelerate, 2 ranks started again": Recipe(example("accelerate"), ("--ranks", "2"), ranks=2, again=True),
    "DCP and FSDP, 2 ranks": Recipe(example("dcp"), ranks=2),
    "DCP and FSDP, 2 ranks started again": Recipe(example("dcp"), ranks=2, again=True),
    "DCP and FSDP, 4 ranks, a process": Recipe(example("dcp"), ("--ranks", "4", "--how", "process"), ranks=4),
    "a state of 2 ranks": Recipe(STATES, ranks=2),
    "a state of 2 ranks started again": Recipe(STATES, ranks=2, again=True),
}


@dataclass
class Tally:
    """What came of one recipe's rounds."""

    whole: Training
    rounds: int = 0
    kills: int = 0
    compared: int = 0
    resumed: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.whole.lives[0].losses[0])

    def add(self, killed: Training) -> None:
        """Compare a run with the uninterrupted one."""
        resumed, lives = resumed_from(killed, self.whole), killed.lives
        begins = [0, *resumed]
        self.kills += len(resumed)
        self.resumed += resumed
        for number, step in enumerate(resumed):
            reached = begins[number] + max(map(len, lives[number].losses.values()))
            self.lost.append(max(reached - step, 0))
        self.compared += sum(len(losses) for life in lives for losses in life.losses.values())

    def row(self, name: str) -> dict[str, Any]:
        """Its line of the table."""
        return {
            "recipe": name, "steps": self.steps, "rounds": self.rounds, "kills": self.kills,
            "resumed after steps": f"{min(self.resumed)} to {max(self.resumed)}" if self.resumed else "",
            "from the beginning": self.resumed.count(0),
            "steps lost, mean": mean(self.lost) if self.lost else 0.0, "steps lost, most": max(self.lost, default=0),
            "losses compared": self.compared, "curves equal": not self.wrong if self.rounds else "",
            "KiB of a checkpoint": sizes(self.whole),
        }  # fmt: skip


def sizes(training: Training) -> str:
    """The mean size of what was saved under each name."""
    by_name: dict[str, list[int]] = {}
    for tasks in training.run.tasks().values():
        for reference in tasks[0].artifacts.get("_task_checkpoints", ()):
            by_name.setdefault(reference["name"], []).append(reference["size"])
    return ", ".join(
        f"{mean(found) / 1024:.0f}" + (f" ({name})" if len(by_name) > 1 else "")
        for name, found in sorted(by_name.items())
    )


#: Prints the bytes of a base, of its adapters, and of what else a loop saves with them: Adam's state. GPT-2's sizes are
#: those of its smallest model.
_LORA_SIZES = """
import json, os, tempfile, torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

def size(path):
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))

base, found = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)), []
with tempfile.TemporaryDirectory() as directory:
    base.save_pretrained(directory)
    found.append(size(directory))
model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["c_attn"], fan_in_fan_out=True))
optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
optimizer.step()
with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    torch.save({"optimizer": optimizer.state_dict()}, os.path.join(directory, "state.pt"))
    found.append(size(directory))
print(json.dumps(found))
"""


def lora_note(place: Path, python: str) -> str:
    """What LoRA's checkpoints have of a model that is not tiny."""
    base, adapters = Workspace(place).query(_LORA_SIZES, python=python, env={"HF_HUB_OFFLINE": "1"})
    return (
        f"LoRA of rank 8 on the attention of GPT-2 (124 M parameters, random): {base / 1e6:,.0f} MB of the base are "
        f"sent once, and {adapters / 1e6:.1f} MB with each checkpoint, Adam's state included. The whole model with "
        f"Adam's state has {3 * base / 1e6:,.0f} MB."
    )


def plan(chance: random.Random, recipe: Recipe, steps: int, most: int) -> list[Kill]:
    """A kill in each of the first lives of a run; one that comes too late for its life does not come."""
    return [
        Kill(
            line=chance.randint(1, steps - 1 if life == 0 else max(steps // 2, 1)),
            after_s=chance.choice((0.0, round(chance.uniform(0, MOST_AFTER_S), 3))),
            attempt=0 if recipe.again else life,
            start=life if recipe.again else 0,
            rank=chance.randrange(recipe.ranks),
        )
        for life in range(chance.randint(1, most))
    ]


def run(options: argparse.Namespace, base: Path) -> dict[str, Tally]:
    """What came of each recipe. They take turns, so that all have been tried when the time is over."""
    python, chance = find_or_make_with_ours(), random.Random(options.seed)
    over = time.monotonic() + options.minutes * 60
    tallies: dict[str, Tally] = {}
    for name in options.recipes:
        tallies[name] = Tally(once(RECIPES[name], base / "whole" / name, python, []))
        print(f"{name}: {tallies[name].steps} steps", flush=True)
    for number in range(1, options.rounds + 1):
        for name, tally in tallies.items():
            if time.monotonic() > over:
                print(f"The time is over in round {number}")
                return tallies
            kills = plan(chance, RECIPES[name], tally.steps, options.kills)
            place = base / f"round-{number}" / name
            tally.rounds += 1
            try:
                tally.add(once(RECIPES[name], place, python, kills))
            except AssertionError as error:
                tally.wrong.append(f"{name}, round {number}, {kills}: {error}")
                print(tally.wrong[-1], flush=True)
            shutil.rmtree(place, ignore_errors=True)
            print(tally.row(name), flush=True)
    return tallies


def once(recipe: Recipe, place: Path, python: str, kills: list[Kill]) -> Training:
    env = {**recipe.env, **(by_torchrun(MOST_KILLS) if recipe.again else {})}
    return train(Workspace(place), recipe.flow, python, kills, arguments=recipe.arguments, env=env)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=2, choices=range(1, MOST_KILLS + 1), help="of a run, at most")
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--minutes", type=float, default=600.0, help="no round begins after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--quick", action="store_true", help="one round with one kill: to try the tool")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = options.kills = 1
    with work_directory() as base:
        tallies = run(options, Path(base))
        rows = [tally.row(name) for name, tally in tallies.items()]
        lora = lora_note(Path(base) / "lora", find_or_make_with_ours())
    notes = [
        *caveats(quick=options.quick),
        f"With {', '.join(each.replace('==', ' ') for each in FRAMEWORKS)}. A loss is what the backward pass begins "
        "with; for Keras, what callbacks get after a batch.",
        "Steps lost: those that a retry computes again, as they came after the newest checkpoint that it found.",
        lora,
    ]
    print("\n".join(notes))
    results.record("integrations", results.command(COMMAND, options.seed), rows, notes)
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
