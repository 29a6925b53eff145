"""Other libraries' ways to save: torch's DCP, Meta's torch_checkpointing, NVIDIA's resiliency extension.

Each as its documentation has it for a trainer that wants to wait as little as possible. All write to local files.
"""

import copy
import os
import shutil
import tempfile

import torch
from metaflow import current

from . import model
from .savers import Missing, Saver

_FILES = "files on the local disk"


class Folders(Saver):
    """A new folder a checkpoint."""

    kept_in = _FILES

    def __init__(self, training, work):
        super().__init__(training, work)
        self.path, self.future = "", None

    def new_folder(self):
        self.path = os.path.join(tempfile.mkdtemp(dir=self.work), "checkpoint")
        return self.path

    def drain(self):
        self.future.result()

    def discard(self):
        shutil.rmtree(os.path.dirname(self.path))

    def zeros(self):
        """A state of the same shape to load into."""
        state = copy.deepcopy(self.training.state())
        for tensor in model.tensors(state):
            tensor.zero_()
        return {**state, "steps": 0}


class Dcp(Folders):
    """``async_save`` of ``torch.distributed.checkpoint``.

    By itself it makes a new copy each time, in the caller. ``staged``: buffers are kept, pinned where there is a GPU,
    and filled by a thread; ``wait`` is for that.
    """

    def __init__(self, training, work, label, process, staged):
        super().__init__(training, work)
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        if process:
            _initialize()
        self.name = f"DCP async_save, {label}"
        self._dcp = dcp
        cuda = training.device == "cuda"
        self._stager = DefaultStager(StagingOptions(cuda, True, True, cuda)) if staged else None
        self._kind = AsyncCheckpointerType.PROCESS if process else AsyncCheckpointerType.THREAD
        self._staged = None

    def save(self, state):
        self.begin(state, checkpoint_id=self.new_folder())

    def begin(self, state, **target):
        answer = self._dcp.async_save(state, async_checkpointer_type=self._kind, async_stager=self._stager, **target)
        self._staged = getattr(answer, "staging_completion", None)
        self.future = getattr(answer, "upload_completion", answer)

    def wait(self):
        if self._staged is not None:
            self._staged.result()

    def restored(self):
        state = self.zeros()
        self._dcp.load(state, checkpoint_id=self.path)
        return state

    def close(self):
        if self._stager is not None:
            self._stager.close()


def _initialize():
    """A group of one process: DCP's process takes its address from it."""
    from torch import distributed

    if not distributed.is_initialized():
        os.environ.update(MASTER_ADDR="127.0.0.1", RANK="0", WORLD_SIZE="1")
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


class DcpInStore(Dcp):
    """The same with this package's ``StoreWriter``."""

    kept_in = "the store"

    def __init__(self, training, work, label):
        super().__init__(training, work, label, process=True, staged=True)
        from async_ckpt.integrations.dcp import StoreReader, StoreWriter

        self._reader, self._writer = StoreReader, StoreWriter
        self._key = ""

    def save(self, state):
        self.begin(state, storage_writer=self._writer())

    def drain(self):
        self._key = self.future.result().storage_meta.checkpoint_id
        current.checkpoint.flush()

    def restored(self):
        state = self.zeros()
        self._dcp.load(state, storage_reader=self._reader(self._key))
        return state

    def discard(self):
        pass


class TorchCheckpointing(Folders):
    """``CheckpointManager`` of torch_checkpointing; without a GPU as its page on troubleshooting says, and without
    O_DIRECT: with it, its writes are not aligned, which ext4 and XFS refuse.
    """

    name = "torch_checkpointing, async"

    def __init__(self, training, work):
        super().__init__(training, work)
        try:
            from torch_checkpointing import CheckpointManager
            from torch_checkpointing.config import AsyncCheckpointSaverConfig
            from torch_checkpointing.staging import CheckpointStagerConfig
            from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
        except ImportError as error:
            raise Missing(f"torch_checkpointing is not installed ({error})") from None
        cuda = training.device == "cuda"
        staging = CheckpointStagerConfig(use_pinned_memory=cuda, use_non_blocking_copy=cuda)
        save = AsyncCheckpointSaverConfig(staging_config=staging)
        files = LocalFileSystemStorageConfig(use_direct_io=False)
        self._manager = CheckpointManager(CheckpointManager.Config(save=save, storage_config=files))

    def save(self, state):
        self.future = self._manager.save(self.new_folder(), state)

    def wait(self):
        with self._manager.lock():
            pass

    def restored(self):
        return dict(self._manager.load(self.path, into=self.zeros()))

    def close(self):
        self._manager.close()


class Nvrx(Folders):
    """``TorchAsyncCheckpoint`` of nvidia-resiliency-ext: ``torch.save`` in a process of its own."""

    name = "NVRx TorchAsyncCheckpoint"

    def __init__(self, training, work):
        super().__init__(training, work)
        try:
            from nvidia_resiliency_ext.checkpointing.async_ckpt.torch_ckpt import TorchAsyncCheckpoint
        except ImportError as error:
            raise Missing(f"nvidia-resiliency-ext is not installed ({error})") from None
        if training.device != "cuda":
            raise Missing("nvidia-resiliency-ext calls CUDA whatever the tensors are on")
        _initialize()
        self._saver = TorchAsyncCheckpoint()

    def save(self, state):
        self._saver.async_save(state, self.new_folder())

    def drain(self):
        self._saver.finalize_async_save(blocking=True)

    def restored(self):
        return torch.load(self.path)

    def close(self):
        self._saver.close()


#: By the name that the program takes.
MAKERS = {
    "dcp-thread": lambda *given: Dcp(*given, "thread, as it comes", process=False, staged=False),
    "dcp-thread-staged": lambda *given: Dcp(*given, "thread, staged by a thread", process=False, staged=True),
    "dcp-process": lambda *given: Dcp(*given, "process, staged by a thread", process=True, staged=True),
    "dcp-store": lambda *given: DcpInStore(*given, "process, into the store"),
    "torch_checkpointing": TorchCheckpointing,
    "nvrx": Nvrx,
}
