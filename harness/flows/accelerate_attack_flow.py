"""Accelerate rotates directories with odd names, leaves half ones, shares a name, and is killed as it writes.

With ``--nodes 2``: two processes with directories of their own, as on two machines.
"""

import json
import os
import signal
import socket
import subprocess
import sys

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step


class AccelerateAttackFlow(FlowSpec):
    nodes = Parameter("nodes", default=1)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        if self.nodes > 1:
            self.found = on_nodes(self.nodes)
        else:
            if current.retry_count == 0:
                attack()
            self.found = resume()
        self.next(self.end)

    @step
    def end(self):
        pass


class Counter:
    """Registered with Accelerate; it kills the process as its state is written, after most of the others."""

    def __init__(self, dies_at=None):
        self.count, self.dies_at = 0, dies_at

    def state_dict(self):
        if self.count == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def prepare(project=None, dies_at=None):
    import accelerate
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    if project is not None:
        project = ProjectConfiguration(project_dir=project, automatic_checkpoint_naming=True, total_limit=1)
    accelerate.__version__ = "9.0"  # Later than any that was tried.
    accelerator, counter = Accelerator(cpu=True, project_config=project), Counter(dies_at)
    model = torch.nn.Linear(2, 1)
    accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    accelerator.register_for_checkpointing(counter)
    return accelerator, counter


def attack():
    from async_ckpt.integrations.accelerate import load_state, save_state

    accelerator, counter = prepare("ü [1]*", dies_at=4)
    assert load_state(accelerator) is None
    for counter.count in (1, 2, 3):
        saved = save_state(accelerator, metadata={"count": counter.count}, name="rotated")
        assert saved.metadata["count"] == counter.count
    assert os.listdir("ü [1]*/checkpoints") == ["checkpoint_2"]
    counter.count = 9
    save_state(accelerator, metadata={"count": 9}, name="other", latest=False)
    # What somebody else saves under the same name, later.
    with open("else.json", "w") as file:
        file.write("{}")
    current.checkpoint.save("else.json", name="rotated")
    plain, counter = prepare()
    spool = os.path.dirname(current.checkpoint.directory)
    before = sorted(os.listdir(spool))
    save_state(plain, "out", metadata={"count": 0}, name="out")
    save_state(plain, name="nowhere")
    assert sorted(os.listdir(spool)) == before
    accelerator, counter = prepare("ü [1]*", dies_at=4)
    load_state(accelerator, name="rotated")
    counter.count = 4
    save_state(accelerator, metadata={"count": 4}, name="rotated")


def resume():
    """Where the second attempt goes on, with whatever the first one has left in the project."""
    from async_ckpt.integrations.accelerate import load_state, save_state

    names = {
        name: [reference["metadata"].get("count") for reference in reversed(current.checkpoint.list(name=name))]
        for name in ("rotated", "other", "out", "nowhere")
    }
    loaded = []
    for reference in reversed(current.checkpoint.list(name="rotated")):
        if "count" in reference["metadata"]:
            accelerator, counter = prepare()
            folder = current.checkpoint.load(reference, f"loaded-{reference['version_id']}")
            assert load_state(accelerator, folder) == {}
            loaded.append(counter.count)
    left = sorted(os.listdir("ü [1]*/checkpoints"))
    accelerator, counter = prepare("ü [1]*")
    twice = [load_state(accelerator, name="rotated")["count"] for _ in range(2)]
    resumed = counter.count
    save_state(accelerator, metadata={"count": 5}, name="rotated")
    after = sorted(os.listdir("ü [1]*/checkpoints"))
    return {"names": names, "loaded": loaded, "left": left, "twice": twice, "resumed": resumed, "after": after}


def on_nodes(nodes):
    """Each process is the first one of its node, and has a disk of its own: its working directory."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(nodes):
        os.makedirs(f"node-{rank}")
        ranks = {"RANK": rank, "WORLD_SIZE": nodes, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
        env = {**os.environ, "MASTER_ADDR": "localhost", **{name: str(value) for name, value in ranks.items()}}
        started.append(subprocess.Popen([sys.executable, os.path.abspath(__file__)], cwd=f"node-{rank}", env=env))
    assert [process.wait(120) for process in started] == [0] * nodes
    found = {}
    for name in ("own", "shared"):
        (saved,) = current.checkpoint.list(name=name)
        found[name] = [saved.get("world"), sorted(os.listdir(current.checkpoint.load(saved, name)))]
    for rank in range(nodes):
        with open(f"node-{rank}/resumed") as file:
            found[str(rank)] = json.load(file)
    return found


def a_node():
    from async_ckpt.integrations.accelerate import load_state, save_state

    accelerator, counter = prepare()
    counter.count = 3 + accelerator.process_index
    save_state(accelerator, "state", name="own", metadata={"rank": accelerator.process_index})
    save_state(accelerator, "../state", name="shared")
    counter.count = 0
    metadata = load_state(accelerator, name="own")
    with open("resumed", "w") as file:
        json.dump([metadata["rank"], counter.count], file)
    accelerator.end_training()


if __name__ == "__main__":
    a_node() if "RANK" in os.environ else AccelerateAttackFlow()
