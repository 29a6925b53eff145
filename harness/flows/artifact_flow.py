"""Keeps its checkpoints in an artifact store; ``STORE`` has its type and config as JSON, ``WAY`` how it is named.

Fails once (``RAISES``), so that the second attempt goes on from what the first one saved.
"""

import glob
import json
import os
import subprocess
import sys

from metaflow import FlowMutator, FlowSpec, checkpoint, current, retry, step, with_artifact_store
from metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.datastore.decorator import (
    ArtifactStoreFlowDecorator,
)

STORE = json.loads(os.environ["STORE"])
#: What must be found nowhere but in the environment.
SECRET = os.environ.get("SECRET", "nobody writes this")


def config():
    """Keys that were renewed, once there is a file with them."""
    found = json.loads(json.dumps(STORE["config"]))
    if os.path.exists("renewed.json"):
        with open("renewed.json") as file:
            found["client_params"].update(json.load(file))
    return found


class OtherName(ArtifactStoreFlowDecorator):
    """As products have them: a decorator of another name, which is made from ``@with_artifact_store``."""

    name = "other_name"
    defaults = {}  # noqa: RUF012

    def flow_init(self, *arguments):
        self.attributes = {"type": STORE["type"], "config": config}
        super().flow_init(*arguments)


class Mutator(FlowMutator):
    def pre_mutate(self, mutable_flow):
        mutable_flow.add_decorator(with_artifact_store, deco_kwargs={"type": STORE["type"], "config": STORE["config"]})


def named(flow):
    """Give a flow its artifact store."""
    way = os.environ.get("WAY", "decorator")
    if way == "subclass":
        flow._flow_state.self_data[_key(flow)].setdefault("other_name", []).append(OtherName())
        return flow
    if way == "mutator":
        return Mutator(flow)
    return with_artifact_store(type=STORE["type"], config=config)(flow)


def _key(flow):
    from metaflow.flowspec import FlowStateItems

    return FlowStateItems.FLOW_DECORATORS


#: In the command lines of other tests' servers, which are given the same key, in a checkout of whatever name.
SERVERS = (b"\0serve\0s3\0", b"radosgw-admin")


def leaks():
    """Files of the spool, and command lines of the processes that upload, that hold the secret."""
    found = []
    for path in [*glob.glob(f"{os.environ['METAFLOW_ASYNC_CKPT_SPOOL_DIR']}/**", recursive=True),
                 *glob.glob("/proc/[0-9]*/cmdline")]:  # fmt: skip
        try:
            with open(path, "rb") as file:
                content = file.read()
            is_process = path.startswith("/proc")
            if is_process and any(server in content for server in SERVERS):
                continue
            if SECRET.encode() in content and (b"async_ckpt" in content or not is_process):
                found.append(path)
        except OSError:
            pass
    return found


@named
class ArtifactFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(uploader=os.environ.get("UPLOADER", "process"), show_card=False)
    @step
    def start(self):
        self.loaded = current.checkpoint.info.attempt if current.checkpoint.is_loaded else None
        path = os.path.join(current.checkpoint.directory, "state")
        with open(path, "w") as file:
            file.write(f"attempt {current.retry_count}")
        self.saved = current.checkpoint.save(name="files", metadata={"attempt": current.retry_count})
        current.checkpoint.save(name="packed", storage_format="tar")
        self.leaks = leaks()
        if current.retry_count == 0 and "RENEWS" in os.environ:
            with open("renewed.json", "w") as file:
                file.write(os.environ["RENEWS"])
        if "SUBPROCESS" in os.environ:
            line = [sys.executable, "-m", "async_ckpt.cli", "save", path, "--name", "shell", "--wait", "--json"]
            self.shell = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
            line = [sys.executable, "-m", "async_ckpt.cli", "list", "--json"]
            listed = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
            self.listed = sorted({entry["name"] for entry in listed})
        if current.retry_count == 0 and "RAISES" in os.environ:
            raise ValueError("The user's own error")
        self.next(self.end)

    @checkpoint(load_policy="none", show_card=False)
    @step
    def end(self):
        current.checkpoint.load(self.saved, "back")
        with open("back/state") as file:
            self.back = file.read()


if __name__ == "__main__":
    ArtifactFlow()
