"""The engines that ``stress.bench.engines`` compares, one kind a file; each runs as ``python -m stress.bench.clients``.

They run in several environments: a module imports its own library, late, and of this repository only what needs no
more than the standard library (``ours`` also ``async_ckpt``).
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """Where an engine is: module and class here, and the environment that has its library."""

    module: str
    name: str
    package: str


ENGINES = {
    "ours": Kind("ours", "Ours", "ours"),
    "aiobotocore": Kind("aio", "Naive", "ours"),
    "boto3": Kind("boto", "Default", "tools"),
    "boto3 tuned": Kind("boto", "Tuned", "tools"),
    "boto3 CRT": Kind("boto", "Crt", "tools"),
    "obstore": Kind("obstore", "Obstore", "tools"),
    "s5cmd": Kind("tools", "S5cmd", "tools"),
    "rclone": Kind("tools", "Rclone", "tools"),
    "Metaflow S3": Kind("incumbent", "MetaflowS3", "peer"),
    "metaflow-checkpoint": Kind("incumbent", "Checkpoint", "peer"),
}
