"""Metaflow's own S3 client, and metaflow-checkpoint, which stands on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from metaflow import S3

from .job import Engine


class MetaflowS3(Engine):
    """``put_files`` and ``get_many``, with the settings they come with."""

    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        with S3(s3root=f"s3://{self.job.bucket}/{prefix}") as s3:
            s3.put_files([(name, os.path.join(directory, name)) for name in sizes])

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        with S3(s3root=f"s3://{self.job.bucket}/{prefix}", tmproot=directory) as s3:
            for found in s3.get_many(list(sizes), return_info=False):
                shutil.move(found.path, os.path.join(directory, found.key))


class Checkpoint(Engine):
    """What ``current.checkpoint.save(directory)`` and ``load`` call, without a flow around them."""

    def up(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        from metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.checkpoints.core import (
            CheckpointDatastore,
            Checkpointer,
        )

        store = CheckpointDatastore.init_write_store(self._backend(prefix), "Bench/1/start/2", "scope", "task")
        Checkpointer(datastore=store).save(directory)

    def down(self, directory: str, prefix: str, sizes: Mapping[str, int]) -> None:
        from metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.datastore.core import ObjectStorage

        # The objects were not put there by a save of its own: this is where load() comes to after it has the metadata.
        folder, _, key = prefix.rpartition("/")
        ObjectStorage(self._backend(""), folder, [])._load_objects(key, directory)

    def _backend(self, prefix: str) -> Any:
        from metaflow.plugins.datastores.s3_storage import S3Storage

        return S3Storage(f"s3://{self.job.bucket}/{prefix}".rstrip("/"))
