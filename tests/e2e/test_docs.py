"""Every code block of the pages is run, word for word, and does what its page says.

A block of which nothing is said here runs by its language: Python in a step, a shell's lines in a process that a step
starts. What it takes for granted there is what ``scene`` prepares. A block that wants more has a ``way`` of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from harness.common.pages import Block, all_blocks, blocks_of, pages
from harness.flow_runs import ddp
from harness.flow_runs.metaflow_env import REPOSITORY, Workspace
from harness.flow_runs.with_peer import find_or_make_both
from harness.s3.servers import rclone

#: A page, and what one of its blocks contains. No code: nothing to run.
NOT_CODE = {("README.md", "1 to 2 ms"), ("docs/architecture.md", "task (or a subprocess)")}
#: What ``test_protocol_page.py`` says to an agent, line by line, wherever it stands on that page.
FRAMES = ("docs/protocol.md", "frames")

RANKS = 4


class Way(NamedTuple):
    """How one block is run: the one of this page that contains ``fragment``."""

    page: str
    fragment: str
    run: Callable[[Block, Workspace], None]
    marks: tuple[pytest.MarkDecorator, ...]

    def fits(self, block: Block) -> bool:
        return block.page == self.page and self.fragment in block.text


WAYS: list[Way] = []


def way(page: str, fragment: str, *marks: pytest.MarkDecorator) -> Callable[[Any], Any]:
    def register(run: Callable[[Block, Workspace], None]) -> Callable[[Block, Workspace], None]:
        WAYS.append(Way(page, fragment, run, marks))
        return run

    return register


# -- where blocks run --------------------------------------------------------------------------------------------------


def scene(local: Workspace) -> None:
    """What pages take for granted: a directory ``out`` to save, with one for each rank."""
    for rank in range(RANKS):
        folder = local.cwd / "out" / str(rank)
        folder.mkdir(parents=True)
        (folder / f"shard-{rank}").write_text(str(rank))


def in_a_step(
    block: Block, local: Workspace, runs: str = "in subprocesses", after: str = "", **env: str
) -> list[dict[str, Any]]:
    """Run a block in a step, or in processes that it starts; returns all that was saved, newest first.

    ``after`` is what comes next in the same script.
    """
    scene(local)
    script = local.root / f"block.{'sh' if block.language == 'sh' else 'py'}"
    script.write_text(block.text + after)
    run = local.run_flow("page_flow", env={"BLOCK": str(script), "BLOCK_RUNS": runs, **env})
    local.assert_clean()
    saved: list[dict[str, Any]] = run.tasks()["start"][0].artifacts["saved"]
    assert all(reference["state"] == "COMMITTED" for reference in saved)
    return saved


def python_in_a_step(block: Block, local: Workspace) -> None:
    in_a_step(block, local, "in the step")


def shell_in_a_step(block: Block, local: Workspace) -> None:
    in_a_step(block, local)


BY_LANGUAGE = {"python": python_in_a_step, "sh": shell_in_a_step}


def excerpt_of(flow: str) -> Callable[[Block, Workspace], None]:
    """For blocks that show parts of an example, which other tests run as a whole; ``...`` stands for lines left out."""

    def check(block: Block, local: Workspace) -> None:
        rest = (REPOSITORY / "examples" / flow).read_text()
        for part in re.split(r"^ *\.\.\.\n", block.text, flags=re.M):
            assert part in rest, f"{flow} has no such lines, or not in this order:\n{part}"
            rest = rest.split(part, 1)[1]

    return check


def of_a_framework(block: Block, local: Workspace) -> None:
    """A page of ``docs/frameworks/`` shows parts of an example that has its name, which a test kills and resumes."""
    name = block.page.rsplit("/", 1)[1].removesuffix(".md")
    missing = []
    for example in sorted((REPOSITORY / "examples").glob(f"{name}_*.py")):
        try:
            excerpt_of(example.name)(block, local)
        except AssertionError as error:
            missing.append(str(error))
        else:
            return
    raise AssertionError("\n".join(missing) or f"no example is named {name}_*.py")


# -- states -----------------------------------------------------------------------------------------------------------

#: What a loop that trains has at hand.
_TRAINING = """
import torch
from metaflow import current
model, step, loss = torch.nn.Linear(4, 1), 3, 0.5
optimizer = torch.optim.Adam(model.parameters())
whole, data = model, [torch.ones(4)] * 3
model = lambda batch: whole(batch).sum()
model.state_dict = whole.state_dict
"""


@way("docs/state.md", 'metadata={"loss"', pytest.mark.long)
@way("docs/state.md", "load_state(into", pytest.mark.long)
@way("docs/state.md", "for batch in data", pytest.mark.long)
def a_state_is_saved(block: Block, local: Workspace) -> None:
    in_a_step(replace(block, text=_TRAINING + block.text), local, "in the step")


# -- README ------------------------------------------------------------------------------------------------------------

#: Goes before the block. The weights at the beginning are always the same, and the task is killed in epoch 40, once.
_KILLED_AT_40 = """
import os, signal, torch
torch.manual_seed(0)
_torch_save = torch.save
def _save_or_die(state, file):
    with open(os.environ["EPOCHS"], "a+") as log:
        log.seek(0)
        again = "40" in log.read().split()
        print(state["epoch"], file=log, flush=True)
    if state["epoch"] == 40 and not again and os.environ["DIES"]:
        os.kill(os.getpid(), signal.SIGKILL)
    _torch_save(state, file)
torch.save = _save_or_die
"""

_LOAD_STATE = """
import json, sys, torch
from metaflow import Checkpoint
Checkpoint().load(json.loads(sys.argv[1]), "there")
print(json.dumps(torch.load("there/model.pt"), default=lambda tensor: tensor.tolist()))
"""


@way(
    "README.md", "class Train(FlowSpec)",
    pytest.mark.long, pytest.mark.timeout(600), pytest.mark.skipif(bool(ddp.MISSING), reason=ddp.MISSING or "-"),
)  # fmt: skip
def a_killed_training_ends_with_the_state_of_one_that_was_not(block: Block, local: Workspace) -> None:
    flow = local.root / "train.py"
    flow.write_text(_KILLED_AT_40 + block.text)
    states, epochs = [], []
    for dies in ("", "once"):
        log = local.root / f"epochs-{dies}"
        run = local.run_flow(flow, env={"EPOCHS": str(log), "DIES": dies})
        tasks = run.tasks()
        assert tasks["start"][0].attempt == (1 if dies else 0)
        assert "'epoch': 99" in run.output, "the next step has the reference, and prints what it leads to"
        states.append(local.query(_LOAD_STATE, json.dumps(tasks["start"][0].artifacts["trained"])))
        epochs.append([int(epoch) for epoch in log.read_text().split()])
    assert epochs == [[*range(100)], [*range(41), *range(40, 100)]]
    assert states[0]["epoch"] == 99
    assert len(states[0]["optimizer"]["state"]) == 2, "there is a state of the optimizer to lose"
    assert states[0] == states[1]
    local.assert_clean()


@way("README.md", "counter_flow.py run", pytest.mark.long, pytest.mark.timeout(900))
def the_first_command_runs_in_a_new_checkout(block: Block, local: Workspace) -> None:
    checkout = local.root / "checkout"
    shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"), symlinks=True)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], cwd=checkout, env=local.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Counted to 18, resumed at 9" in done.stdout


@way("README.md", "-m pytest")
def the_second_command_is_the_one_that_ci_runs(block: Block, local: Workspace) -> None:
    assert block.text in (REPOSITORY / ".ci" / "run").read_text()


@way("docs/retention.md", "keep_every=100")
def a_flow_keeps_what_its_rules_say(block: Block, local: Workspace) -> None:
    flow = local.root / "train.py"
    flow.write_text(block.text)
    run = local.run_flow(flow)
    local.assert_clean()
    listed = local.run_command(["async-ckpt", "list", "--flow", "Train", "--attempt", "all", "--json"]).stdout
    # The best by its loss, each hundredth, and the last two.
    assert sorted(found["version_id"] for found in json.loads(listed)) == [0, 42, 100, 200, 248, 249]
    assert run.tasks()["start"][0].successful


@way("docs/subprocesses.md", 'metadata={"rank": 0}')
def a_subprocess_saves(block: Block, local: Workspace) -> None:
    assert [reference["metadata"] for reference in in_a_step(block, local)] == [{"rank": 0}]


@way("docs/subprocesses.md", "async-ckpt save")
def a_shell_saves(block: Block, local: Workspace) -> None:
    assert [(c["name"], c["metadata"]) for c in in_a_step(block, local)] == [("best", {"loss": 0.1})]


#: The command that the page calls ``train``. What need not be kept goes while it trains, so it lives until then.
_TRAIN = """#!/usr/bin/env python3
import json, os, sys, time
assert sys.argv[1] == "--output"
for step in range(1, 5):
    folder = f"{sys.argv[2]}/checkpoint-{step}"
    os.mkdir(folder)
    with open(f"{folder}/trainer_state.json", "w") as file:
        json.dump({"global_step": step}, file)
while os.path.exists(f"{sys.argv[2]}/checkpoint-2"):
    time.sleep(0.05)
"""


@way("docs/watch.md", "current.checkpoint.watch(")
def what_a_trainer_writes_is_saved_and_the_newest_are_kept(block: Block, local: Workspace) -> None:
    train = local.root / "bin" / "train"
    train.parent.mkdir()
    train.write_text(_TRAIN)
    train.chmod(0o755)
    path = os.pathsep.join([str(train.parent), local.environment()["PATH"]])
    # The trainer does not rename: its checkpoints are finished when they were quiet for as long as this.
    saved = in_a_step(block, local, "in the step", PATH=path, METAFLOW_ASYNC_CKPT_WATCH_SETTLE_S="1")
    assert [reference["metadata"]["global_step"] for reference in saved] == [4, 3, 2, 1]
    assert sorted(path.name for path in local.cwd.glob("out/checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


#: A trainer beside the command that watches, which the page leaves in the background.
_WRITES_ONE = """
until grep -qs ^inotify /proc/$!/fdinfo/*; do sleep 0.1; done
echo weights > out/temporary
mv out/temporary out/last.ckpt
kill $!
wait $!
"""


@way("docs/watch.md", "async-ckpt watch")
def a_shell_watches_until_it_is_told_to_end(block: Block, local: Workspace) -> None:
    (saved,) = in_a_step(block, local, after=_WRITES_ONE)
    assert saved["metadata"]["path"] == "last.ckpt"


# -- the chapters ------------------------------------------------------------------------------------------------------

way("docs/saving.md", "self.input")(excerpt_of("foreach_flow.py"))
way("docs/saving.md", "self.models")(excerpt_of("foreach_flow.py"))
way("docs/subprocesses.md", "rank-{rank}")(excerpt_of("subprocess_flow.py"))
way("docs/frameworks/dcp.md", "StoreReader()")(excerpt_of("dcp_train.py"))
way("docs/frameworks/dcp.md", "random-{self.rank}")(excerpt_of("dcp_train.py"))

_GANG = """
import os
from metaflow import FlowSpec, checkpoint, current, parallel, retry, step

RANKS = 2


def load_state(path):
    with open(path) as file:
        log("loads", file.read())


def train_one_epoch():
    log("trains", "")
    if current.parallel.node_index == 1 and current.retry_count == 0 and len(lines()) >= 5:
        raise RuntimeError("The machine of rank 1 fell over")


def save_state(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(f"state {len(lines())} of rank {current.parallel.node_index}")


def log(*what):
    with open(f"log-{current.parallel.node_index}", "a") as file:
        print(current.retry_count, *what, file=file)


def lines():
    with open(f"log-{current.parallel.node_index}") as file:
        return file.read().splitlines()


class GangFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=RANKS)

{method}
    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GangFlow()
"""


_STORE_FLOW = """
import os
from metaflow import FlowSpec, checkpoint, current, step, with_artifact_store

{block}    @checkpoint
    @step
    def start(self):
        self.next(self.train)

    @checkpoint
    @step
    def train(self):
        with open(os.path.join(current.checkpoint.directory, "state"), "w") as file:
            file.write("trained")
        current.checkpoint.save()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TrainFlow()
"""

#: Goes before the block that reads.
_READER = """
import json, sys
from metaflow import Checkpoint, Run, artifact_store_from, namespace
namespace(None)
run, client_params = Run(sys.argv[1]), json.loads(sys.argv[2])
"""


@way("docs/s3.md", "class TrainFlow", pytest.mark.timeout(400), pytest.mark.long)
@way("docs/s3.md", "with artifact_store_from", pytest.mark.timeout(400))
def checkpoints_go_to_the_other_bucket_and_are_read_from_there(block: Block, local: Workspace) -> None:
    """The page's two blocks belong together: the second one reads what a flow with the first one has saved."""
    python = find_or_make_both()
    writes, reads = (each.text for each in all_blocks() if each.page == block.page)
    flow, bucket = local.root / "train.py", local.root / "server" / "another-bucket"
    flow.write_text(_STORE_FLOW.replace("{block}", writes.replace("    ...\n", "")))
    bucket.mkdir(parents=True)
    with rclone(bucket.parent) as server:
        params = server.client_params
        # rclone takes no bodies in chunks, which are how botocore sends its own checksums.
        plain = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_DEFAULT_REGION": params["region_name"]}
        keys = {
            "TRAINING_ENDPOINT": server.url, "TRAINING_KEY": params["aws_access_key_id"],
            "TRAINING_SECRET": params["aws_secret_access_key"],
        }  # fmt: skip
        run = local.run_flow(flow, python=python, env={**plain, **keys})
        assert list(bucket.glob("checkpoints/mf.checkpoints/**/state"))
        local.run_python(_READER + reads, run.pathspec, json.dumps(params), python=python, env=plain)
    assert (local.cwd / "model" / "state").read_text() == "trained"
    local.assert_clean()


@way("docs/gangs.md", "@parallel", pytest.mark.long)
def a_gang_goes_on_from_the_same_checkpoint(block: Block, local: Workspace) -> None:
    """The block is a method; what it calls says in a file for each rank what it did."""
    flow = local.root / "gang.py"
    flow.write_text(_GANG.replace("{method}", textwrap.indent(block.text, "    ")))
    run = local.run_flow(flow)
    logs = [(local.cwd / f"log-{rank}").read_text().splitlines() for rank in range(2)]
    # Rank 1 fell over in its fifth epoch: the four before it had been saved by both.
    assert [line for line in logs[1] if line.startswith("0")] == ["0 trains "] * 5
    for rank, log in enumerate(logs):
        again = [line for line in log if line.startswith("1")]
        assert again == [f"1 loads state 4 of rank {rank}"] + ["1 trains "] * 6
    control = min(run.tasks()["train"], key=lambda task: len(task.pathspec))
    assert [c["metadata"]["epoch"] for c in control.artifacts["_task_checkpoints"]] == [9, 8, 7, 6, 5, 4]
    local.assert_clean()


@way("docs/gangs.md", "from metaflow import Checkpoint")
@way("docs/gangs.md", "async-ckpt save")
def ranks_save_one_checkpoint(block: Block, local: Workspace) -> None:
    (saved,) = in_a_step(block, local, RANKS=str(RANKS))
    assert (saved["metadata"], saved["world"]) == ({"epoch": 3}, RANKS)


@way("docs/saving.md", "datetime.now()")
def metadata_is_converted(block: Block, local: Workspace) -> None:
    (saved,) = in_a_step(block, local, "in the step")
    metadata = saved["metadata"]
    assert datetime.fromisoformat(metadata.pop("when"))
    assert metadata == {"epoch": 3, "loss": 0.5, "labels": ["cat", "dog"]}


# -- other pages -------------------------------------------------------------------------------------------------------


@way("CONTRIBUTING.md", "make test")
def the_targets_are_there(block: Block, local: Workspace) -> None:
    """Nothing is made: with ``n``, make prints what it would do."""
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], cwd=REPOSITORY, env={**os.environ, "MAKEFLAGS": "n"},
        check=True, timeout=60,
    )  # fmt: skip


@way("stress/README.md", "results.record(")
def a_stress_program_hands_over_its_table(block: Block, local: Workspace) -> None:
    """In a copy, as results are kept beside the program."""
    shutil.copytree(REPOSITORY / "stress", local.cwd / "stress", ignore=shutil.ignore_patterns("*.json"))
    rows, notes = [{"who": "ours", "save_ms": 1.5}], ["A note."]
    code = f"rows, notes = {rows!r}, {notes!r}\n{block.text}"
    local.run_python(code, env={"PYTHONPATH": str(local.cwd)})
    recorded = json.loads((local.cwd / "stress" / "bench" / "results" / "torn.json").read_text())
    assert (recorded["rows"], recorded["notes"]) == (rows, notes)


def commands() -> list[str]:
    """The stress programs that the pages name; they take minutes to hours."""
    text = "".join((REPOSITORY / page).read_text() for page in pages())
    return sorted(set(re.findall(r"`python -m (stress[\w.]*)", text)))


#: All in one process: most of what each takes is the start of a Python.
_HELP = """
import contextlib, io, json, runpy, sys
said = {}
for module in sys.argv[1:]:
    sys.argv, heard = [module, "--help"], io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    said[module] = heard.getvalue()
print(json.dumps(said))
"""


def test_the_programs_that_pages_name_are_there_and_say_how_they_are_used(local: Workspace) -> None:
    modules = commands()
    assert modules
    said = local.query(_HELP, *modules, env={"PYTHONPATH": str(REPOSITORY)})
    assert [module for module in modules if "usage:" not in said[module]] == []


# -- all of them -------------------------------------------------------------------------------------------------------


def is_code(block: Block) -> bool:
    return not any(block.page == page and fragment in block.text for page, fragment in NOT_CODE)


CODE = [block for block in all_blocks() if is_code(block) and (block.page, block.language) != FRAMES]


def ways_of(block: Block) -> list[Way]:
    return [each for each in WAYS if each.fits(block)]


def marks_of(block: Block) -> list[pytest.MarkDecorator]:
    """Always tried are README, and of each other page the first block; the rest is long."""
    first = next(each for each in CODE if each.page == block.page)
    marks = [mark for way in ways_of(block) for mark in way.marks]
    return marks if block.page == "README.md" or block is first else [*marks, pytest.mark.long]


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block), marks=marks_of(block)) for block in CODE])
def test_a_block_does_what_its_page_says(block: Block, local: Workspace) -> None:
    found = ways_of(block)
    assert len(found) <= 1, "more than one way fits this block"
    of_framework = block.language == "python" and block.page.startswith("docs/frameworks/")
    usual = of_a_framework if of_framework else BY_LANGUAGE.get(block.language)
    run = found[0].run if found else usual
    assert run is not None, f"{block}: nothing here says how {block.language!r} is run"
    run(block, local)


def test_every_way_and_every_exception_is_for_one_block() -> None:
    blocks = all_blocks()
    for each in WAYS:
        assert sum(map(each.fits, blocks)) == 1, (each.page, each.fragment)
    for page, fragment in NOT_CODE:
        assert [block.language for block in blocks if block.page == page and fragment in block.text] == [""]


def test_blocks_are_found_and_none_is_passed_over() -> None:
    page = "text\n```python\na = 1\n\n```\n```\nplain\n```\n"
    assert [(b.line, b.language, b.text) for b in blocks_of("p.md", page)] == [
        (3, "python", "a = 1\n\n"), (7, "", "plain\n"),
    ]  # fmt: skip
    for bad in ("  ```sh\nls\n  ```\n", "~~~\nls\n~~~\n", "```sh\nls\n", "````\nls\n````\n"):
        with pytest.raises(ValueError, match=r"^p\.md:1: "):
            list(blocks_of("p.md", bad))
    assert {"README.md", "CONTRIBUTING.md", "docs/gangs.md", "stress/README.md"} <= set(pages())
