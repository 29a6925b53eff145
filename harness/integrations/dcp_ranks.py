"""Ranks that save and load with PyTorch's distributed checkpoints (DCP), whatever happens to them.

    python dcp_ranks.py CASE...        in a step: prints a line of JSON for each case

All ranks are forked from one process, so that torch is imported once, and no launcher tells them who they are.
"""

import errno
import functools
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from metaflow import Checkpoint
from torch import multiprocessing, nn
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from async_ckpt.integrations.dcp import StoreReader, StoreWriter
from async_ckpt.task.checkpointer import Checkpointer

WIDTH = 16
_LIMIT_S = 120


def ranks(world, function, *arguments):
    """Call a function in so many processes that form a group. What it returns, or the text of its error, by rank; None
    of a rank that was killed.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            given = (theirs, f"file://{folder}/group", rank, world, function, arguments)
            processes.append(context.Process(target=_rank, args=given))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        found = [_received(pipe) for pipe in pipes]
        for process in processes:
            process.join(_LIMIT_S)
    return found


def _received(pipe):
    try:
        return pipe.recv() if pipe.poll(_LIMIT_S) else "it hung"
    except EOFError:
        return None


def _rank(pipe, address, rank, world, function, arguments):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    try:
        pipe.send(function(*arguments))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        dist.barrier()
        dist.destroy_process_group()


class Training:
    """A model and its optimizer, sharded as told."""

    def __init__(self, how="fsdp", seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        if how == "fsdp":
            fully_shard(self.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        elif how == "hsdp":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
            fully_shard(self.model, mesh=mesh)
        elif how == "tensors":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensors"))
            parallelize_module(self.model, mesh["tensors"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            fully_shard(self.model, mesh=mesh["data"])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)

    def train(self, steps=2):
        for _ in range(steps):
            self.model(torch.ones(4, WIDTH)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state):
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def digests(self):
        """Name → digest of each whole tensor."""
        return _digests(self.state_dict())


def _digests(value, name=""):
    if isinstance(value, dict):
        return {key: digest for part in value for key, digest in _digests(value[part], f"{name}/{part}").items()}
    if isinstance(value, list):
        return _digests(dict(enumerate(value)), name)
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, torch.Tensor):
        content = repr((value.shape, value.dtype)).encode() + value.detach().numpy().tobytes()
        return {name: hashlib.sha256(content).hexdigest()[:12]}
    return {name: repr(value)}


class Listing(FileSystemReader):
    """Notes which files are there when it reads."""

    files = ()

    def read_data(self, plan, planner):
        Listing.files = sorted(os.listdir(self.path))
        return super().read_data(plan, planner)


def save(state, **options):
    """Save; returns the key, which every rank gets."""
    planner = options.pop("planner", None)
    writer = StoreWriter(**options)
    return dcp.save(state, storage_writer=writer, planner=planner).storage_meta.checkpoint_id


def _trained_and_saved(how):
    training = Training(how).train()
    return training.digests(), save({"training": training})


def _loaded_and_saved(how, reference):
    training = Training(how, seed=1)
    before = training.digests()
    dcp.load({"training": training}, storage_reader=StoreReader(reference, Listing))
    return training.digests(), save({"training": training}), before, Listing.files


def _loaded_alone(reference):
    training = Training("alone", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That there is no group.
        dcp.load({"training": training}, storage_reader=StoreReader(reference))
        return training.digests(), save({"training": training}, name="alone")


def reshard():
    """2 → 2 → 4 → 1 → no group at all."""
    saved = ranks(2, _trained_and_saved, "fsdp")
    same = ranks(2, _loaded_and_saved, "fsdp", saved[0][1])
    more = ranks(4, _loaded_and_saved, "fsdp", same[0][1])
    one = ranks(1, _loaded_and_saved, "fsdp", more[0][1])
    alone = _loaded_alone(one[0][1])
    return {
        "keys": [saved[0][1], saved[1][1]],
        "wanted": saved[0][0],
        "found": [rank[0] for rank in (*same, *more, *one, alone)],
        "before": same[0][2],
        "files": [rank[3] for rank in same],
        "linked": _are_linked(),
    }


def _are_linked():
    """Whether the next save takes what ranks write for new files each time."""
    spool = Checkpointer.from_environment().spool
    return spool.habits().is_new_each_time(os.path.join(os.path.realpath(spool.path("work")), "0-x/dcp/__3_0.distcp"))


def mesh():
    """2 x 2 ranks: shards that are replicated; shards of shards."""
    found = {}
    for how in ("hsdp", "tensors"):
        saved = ranks(4, _trained_and_saved, how)
        loaded = ranks(4, _loaded_and_saved, how, saved[0][1])
        found[how] = {"wanted": saved[0][0], "found": [rank[0] for rank in loaded], "before": loaded[0][2]}
    return found


class Dying(FileSystemWriter):
    """Rank 1 is killed when it has written."""

    def write_data(self, plan, planner):
        written = super().write_data(plan, planner)
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return written


def killed():
    """Before the commit: the checkpoint before it stays the newest."""
    before = ranks(2, save, {"value": torch.ones(3)})
    found = ranks(2, functools.partial(save, {"value": torch.zeros(3)}, kind=Dying))
    return {"before": before[0], "found": found, "newest": Checkpoint().list()[0]["key"]}


class Full(FileSystemWriter):
    """Rank 1 has no room for what it writes."""

    def write_data(self, plan, planner):
        if dist.get_rank() == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            return super().write_data(plan, planner)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _full_then_not():
    state = {f"rank-{dist.get_rank()}": torch.full((1000,), float(dist.get_rank()))}
    before = _files()
    dist.barrier()
    try:
        save(state, kind=Full)
        said = "nothing"
    except BaseException as error:  # Torch's is no Exception.
        said = str(error)
    key = save(state)
    dist.barrier()
    return said, sorted(_files() - before), key


def _files():
    """What ranks write and have not removed."""
    work = os.path.join(os.environ["ASYNC_CKPT_SPOOL"], "work")
    return {os.path.join(folder, name) for folder, _, names in os.walk(work) for name in names}


def full():
    found = ranks(2, _full_then_not)
    return {"found": found, "saved": [info["key"] for info in Checkpoint().list()], "limit": os.strerror(errno.EFBIG)}


def _saved_in_turns(planner):
    found = []
    for number in range(3):
        state = {"all": torch.full((5,), float(number)), f"rank-{dist.get_rank()}": torch.full((5,), 10.0 + number)}
        key = save(state, planner=planner())
        empty = {name: torch.zeros(5) for name in state}
        dcp.load(empty, storage_reader=StoreReader(key))
        found.append(all(torch.equal(empty[name], state[name]) for name in state))
    return found


def _replicated():
    state = {"all": torch.arange(5.0), "more": torch.arange(7.0)}
    key = save(state, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
    empty = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(empty, storage_reader=StoreReader(key, Listing))
    return all(torch.equal(empty[name], state[name]) for name in state), Listing.files


def planners():
    """A planner that keeps its plans; one that leaves rank 1 with nothing to write."""
    caching = functools.partial(DefaultSavePlanner, enable_plan_caching=True)
    return {"caching": ranks(2, _saved_in_turns, caching), "one_rank": ranks(2, _replicated)}


def _two_at_once():
    groups, writer = [dist.new_group(backend="gloo") for _ in range(2)], StoreWriter()
    states = [{f"rank-{dist.get_rank()}": torch.full((50000,), float(number))} for number in range(2)]
    under_way = [
        dcp.async_save(state, storage_writer=writer, process_group=group)
        for state, group in zip(states, groups, strict=True)
    ]
    for state in states:  # Training goes on.
        state[f"rank-{dist.get_rank()}"].add_(100)
    keys, found = [saving.result().storage_meta.checkpoint_id for saving in under_way], []
    for key in keys:
        empty = {f"rank-{dist.get_rank()}": torch.zeros(50000)}
        dcp.load(empty, storage_reader=StoreReader(key))
        found.append(sorted(set(next(iter(empty.values())).tolist())))
    return keys, found


def two():
    """Two saves are under way at once, of one writer."""
    return ranks(2, _two_at_once)


def _in_a_process():
    value = torch.ones(5)
    saving = dcp.async_save(
        {"value": value}, storage_writer=StoreWriter(), async_checkpointer_type=AsyncCheckpointerType.PROCESS
    )
    value.add_(1)
    empty = {"value": torch.zeros(5)}
    dcp.load(empty, checkpoint_id=saving.result().storage_meta.checkpoint_id, storage_reader=StoreReader())
    return empty["value"].tolist()


def process():
    """``async_save`` in a process of its own."""
    return ranks(1, _in_a_process)


def _named(name):
    state = {"value": torch.ones(2)}
    dcp.save(state, checkpoint_id=name, storage_writer=StoreWriter(metadata={"step": 3}))
    empty = {"value": torch.zeros(2)}
    dcp.load(empty, checkpoint_id=name, storage_reader=StoreReader())
    return empty["value"].tolist()


def _refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except BaseException as error:  # Torch's is no Exception.
        return str(error)
    return "nothing"


def _errors():
    state = {"value": torch.ones(2)}
    return {
        "slash": _refused(_named, "a/b"),
        "nobody": _refused(dcp.load, state, storage_reader=StoreReader("nobody")),
        "not ours": _refused(dcp.load, state, storage_reader=StoreReader(_plain())),
        "uncoordinated": _refused(dcp.save, state, storage_writer=StoreWriter(), use_collectives=False),
    }


def _plain():
    with tempfile.TemporaryDirectory() as folder:
        open(os.path.join(folder, "model.pt"), "w").close()
        return Checkpoint().save(folder, name="plain")


def names():
    odd = "épo che=1%20'\"&#"
    found = ranks(1, _named, odd)
    return {"odd": odd, "found": found, "newest": Checkpoint().list()[0]["name"], "errors": ranks(1, _errors)}


def _safetensors():
    training = Training().train()
    state = training.state_dict()["model"]
    options = {"save_distributed": True, "enable_consolidation": True}
    reference = save(state, kind=HuggingFaceStorageWriter, name="safetensors", **options)
    other = Training(seed=1)
    empty = other.state_dict()["model"]
    dcp.load(empty, storage_reader=StoreReader(reference, HuggingFaceStorageReader))
    return _digests(state), _digests(empty), reference


def safetensors():
    found = ranks(2, _safetensors)
    folder = Checkpoint().load(found[0][2], "safetensors")
    names = sorted(
        os.path.relpath(os.path.join(at, name), folder) for at, _, files in os.walk(folder) for name in files
    )
    return {"found": [rank[:2] for rank in found], "files": names, "same file": ranks(2, _in_the_same_file)}


def _in_the_same_file():
    return _refused(save, {f"rank-{dist.get_rank()}": torch.ones(2)}, kind=HuggingFaceStorageWriter)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for name in sys.argv[1:]:
        print("found:", json.dumps({"case": name, "found": globals()[name]()}), flush=True)
