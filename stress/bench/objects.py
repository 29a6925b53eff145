"""Metadata objects written straight into a store, as an earlier attempt would have left them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from async_ckpt import layout

from .environment import Package
from .servers import Target, s3_client

_WRITERS = 8


def past_references(reference: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """References of the same attempt and version as ``reference`` under other names: none is newer than it."""
    parts = layout.parse_key(reference["key"])
    folder = reference["key"].rpartition("/")[0]
    found = []
    for number in range(count):
        name = f"past{number}"
        key = f"{folder}/{parts.pathspec_hash}.{parts.attempt}.{name}.{parts.version}"
        more = {"manifest": layout.parse_key(key).manifest_key} if "manifest" in reference else {}
        url = f"{reference['url'].removesuffix(reference['key'])}{key}"
        found.append({**reference, "name": name, "key": key, "url": url, **more})
    return found


def write_history(target: Target, package: Package, references: list[dict[str, Any]]) -> None:
    """Put these references into their task's folder, where a task's checkpoints are listed.

    Data is not written: a history's older checkpoints are only ever listed and read as metadata.
    """
    folder = layout.metadata_folder(references[0]["pathspec"])
    objects = {
        f"{folder}/{item['attempt']}.{item['name']}.{item['version_id']}.metadata": json.dumps(item).encode()
        for item in references
    }
    put = _local_writer(target, package) if target.name == "local" else _s3_writer(target, package)
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(put, objects.keys(), objects.values()):
            pass


def _local_writer(target: Target, package: Package) -> Any:
    root = os.path.join(target.root, package.name, "local", ".metaflow")

    def put(key: str, data: bytes) -> None:
        with open(os.path.join(root, key), "wb") as file:
            file.write(data)

    return put


def _s3_writer(target: Target, package: Package) -> Any:
    settings, client = target.environment, s3_client(target.environment)
    root = settings["METAFLOW_DATASTORE_SYSROOT_S3"].format(package=package.name).removeprefix("s3://")
    bucket, _, prefix = root.partition("/")

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)

    return put
