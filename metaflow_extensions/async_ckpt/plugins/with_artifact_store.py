"""metaflow-checkpoint's ``@with_artifact_store``, which says what is wrong with its settings.

Only imported where metaflow-checkpoint is installed. What it does not take it refuses by an ``IndexError`` or a
``TypeError`` about its own classes, or by asking for a library, with which the store could not keep our checkpoints
either; and it does so before any step decorator is asked.
"""

from __future__ import annotations

from typing import Any

from metaflow.exception import MetaflowException
from metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.datastore.decorator import (
    ArtifactStoreFlowDecorator,
)

from async_ckpt.errors import UsageError

from .checkpoint_decorator import CheckpointDecorator, CheckpointException


class ArtifactStoreDecorator(ArtifactStoreFlowDecorator):  # type: ignore[misc]
    __doc__ = ArtifactStoreFlowDecorator.__doc__

    def flow_init(self, flow: Any, *arguments: Any) -> None:
        try:
            super().flow_init(flow, *arguments)
        except Exception as error:
            ours = any(isinstance(found, CheckpointDecorator) for step in flow for found in step.decorators)
            if ours or not isinstance(error, MetaflowException):
                self._check()
            raise

    def _check(self) -> None:
        from async_ckpt.stores.metaflow import artifact_store

        config = self.attributes["config"]
        try:
            artifact_store({"type": self.attributes["type"], "config": config() if callable(config) else config})
        except UsageError as error:
            raise CheckpointException(f"@{self.name}: {error}") from None
