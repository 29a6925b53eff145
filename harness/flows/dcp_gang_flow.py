"""Two nodes save together with PyTorch's distributed checkpoints. In its third save node 1 dies when it has written."""

import os
import signal
from datetime import timedelta

from metaflow import FlowSpec, checkpoint, current, parallel, retry, step

NODES = 2


class DcpGangFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=NODES)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @parallel
    @step
    def train(self):
        # Here, as only this step needs it, and it takes seconds.
        import torch
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import FileSystemWriter

        from async_ckpt.integrations.dcp import StoreReader, StoreWriter

        class Dying(FileSystemWriter):
            def write_data(self, plan, planner):
                written = super().write_data(plan, planner)
                if rank == 1 and current.retry_count == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return written

        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        rank, address = current.parallel.node_index, f"file://{os.path.abspath(f'group-{current.retry_count}')}"
        limit = timedelta(seconds=100)
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=NODES, timeout=limit)
        state = {"count": 0, "all": torch.zeros(3), f"rank-{rank}": torch.zeros(5)}
        self.resumed_at, self.keys, self.loaded = 0, [], None
        if current.checkpoint.is_loaded:
            dcp.load(state, storage_reader=StoreReader(current.checkpoint.info.key))
            self.resumed_at = state["count"]
            self.loaded = [state["all"].tolist(), state[f"rank-{rank}"].tolist()]
        while state["count"] < 4:
            state["count"] += 1
            state["all"].fill_(state["count"])
            state[f"rank-{rank}"].fill_(state["count"] + rank / 2)
            kind = Dying if state["count"] == 3 else FileSystemWriter
            writer = StoreWriter(kind, metadata={"count": state["count"]})
            self.keys.append(dcp.save(state, storage_writer=writer).storage_meta.checkpoint_id)
            if state["count"] == 2:
                current.checkpoint.flush()  # Of this one it is certain that it is there.
        self.next(self.join)

    @step
    def join(self, inputs):
        self.nodes = [(task.resumed_at, task.loaded, task.keys) for task in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    DcpGangFlow()
