"""Copies from a device into pinned host memory, on a stream beside the training's.

All that is known of CUDA here goes through ``torch.cuda``, which is handed in: a test hands in one that is no device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)


class Cuda:
    """Copies from CUDA devices.

    Parameters
    ----------
    cuda : module
        ``torch.cuda``, or what stands in for it.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        #: That of the thread which trains: others have no device of their own, and would open the first one.
        self._device = cuda.current_device()
        self._streams: dict[Any, Any] = {}
        self._pinned: set[int] = set()

    def pin(self, address: int, size: int) -> None:
        """Page-lock host memory, so that copies into it run at full speed and beside the training."""
        with self._cuda.device(self._device):
            error = int(self._cuda.cudart().cudaHostRegister(address, size, 0))
        if error:
            log.warning(
                f"{size} bytes of host memory cannot be pinned (CUDA error {error}): copies from the device are "
                "slower, and hold up the training"
            )
        else:
            self._pinned.add(address)

    def unpin(self, address: int) -> None:
        if address in self._pinned:
            self._pinned.discard(address)
            with self._cuda.device(self._device):
                self._cuda.cudart().cudaHostUnregister(address)

    def copy(self, copies: Iterable[tuple[Any, Any]], *, beside: bool = True) -> list[Any]:
        """Enqueue copies (target, source), each after what the training's stream does to its source now.

        Parameters
        ----------
        beside : bool
            On a stream of their own, so that the training goes on meanwhile; else in the training's stream.

        Returns
        -------
        list
            An event for each device: when it is over, so are the copies.
        """
        by_device: dict[Any, list[tuple[Any, Any]]] = {}
        for target, source in copies:
            by_device.setdefault(source.device, []).append((target, source))
        return [self._copy(device, group, beside) for device, group in by_device.items()]

    def _copy(self, device: Any, copies: list[tuple[Any, Any]], beside: bool) -> Any:
        training = self._cuda.current_stream(device)
        if beside and device not in self._streams:
            self._streams[device] = self._cuda.Stream(device=device)
        stream = self._streams[device] if beside else training
        stream.wait_stream(training)
        with self._cuda.stream(stream):
            for target, source in copies:
                target.copy_(source, non_blocking=True)
                # Its memory is not given to another tensor before this stream has read it.
                source.record_stream(stream)
            event = self._cuda.Event()
            event.record(stream)
        return event

    def hold_training(self, events: Iterable[Any]) -> None:
        """Whatever the training enqueues from now on begins after these copies; the host does not wait."""
        for event in events:
            for device in self._streams:
                self._cuda.current_stream(device).wait_event(event)
