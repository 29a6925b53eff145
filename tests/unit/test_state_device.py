"""Copies from a device, with a device that is none: it writes down what it is told, and copies when a test says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from async_ckpt.state.device import Cuda


class Stream:
    """What is enqueued runs in order, once all that it waits for has run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.work: list[tuple[str, Callable[[], object], Callable[[], bool]]] = []

    def enqueue(self, what: str, work: Callable[[], object], ready: Callable[[], bool] = lambda: True) -> None:
        self.work.append((what, work, ready))

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)

    def wait_event(self, event: Event) -> None:
        self.enqueue("wait", lambda: None, lambda: event.over)

    def step(self) -> bool:
        if not self.work or not self.work[0][2]():
            return False
        self.work.pop(0)[1]()
        return True


class Event:
    over = False

    def record(self, stream: Stream) -> None:
        def end() -> None:
            self.over = True

        stream.enqueue("event", end)


class Tensor:
    def __init__(self, device: str, value: int, cuda: FakeCuda) -> None:
        self.device, self.value, self._cuda = device, value, cuda
        self.used_by: list[Stream] = []

    def copy_(self, source: Tensor, non_blocking: bool) -> None:
        assert non_blocking

        def copy() -> None:
            self.value = source.value

        self._cuda.now.enqueue("copy", copy)

    def record_stream(self, stream: Stream) -> None:
        self.used_by.append(stream)


class FakeCuda:
    Event = Event

    def __init__(self) -> None:
        self.training = {device: Stream(f"training {device}") for device in ("cuda:0", "cuda:1")}
        self.sides: list[Stream] = []
        self.now = self.training["cuda:0"]
        self.registered: dict[int, int] = {}
        self.error = 0
        self.entered: list[int] = []

    def Stream(self, device: str) -> Stream:
        self.sides.append(Stream(f"side {device}"))
        return self.sides[-1]

    def current_stream(self, device: str) -> Stream:
        return self.training[device]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def current_device(self) -> int:
        return 1

    @contextlib.contextmanager
    def device(self, number: int) -> Iterator[None]:
        self.entered.append(number)
        yield

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if not self.error:
            self.registered[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0

    def run(self, order: list[Stream]) -> None:
        """Let the streams work, the first one in ``order`` as far as it can, then the next, until nothing is left."""
        while any(stream.step() for stream in order):
            continue
        assert not any(stream.work for stream in order), "a stream waits for something that never comes"


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.mark.parametrize("first", ["training", "side"])
def test_the_copy_has_what_was_there_when_it_was_asked_for(cuda: FakeCuda, first: str) -> None:
    """Whatever the training enqueued before is in it, whatever comes after the hold is not, however fast who is."""
    source, target = Tensor("cuda:0", 0, cuda), Tensor("cpu", -1, cuda)
    training, device = cuda.training["cuda:0"], Cuda(cuda)

    def write(value: int) -> None:
        training.enqueue("write", lambda: setattr(source, "value", value))

    write(1)
    events = device.copy([(target, source)])
    device.hold_training(events)
    write(2)
    streams = [training, *cuda.sides]
    cuda.run(streams if first == "training" else streams[::-1])
    assert (target.value, source.value) == (1, 2)
    assert all(event.over for event in events)


def test_without_the_hold_the_training_may_be_faster(cuda: FakeCuda) -> None:
    """That is why versions are compared; and without this the test above would prove nothing."""
    source, target = Tensor("cuda:0", 1, cuda), Tensor("cpu", -1, cuda)
    training = cuda.training["cuda:0"]
    Cuda(cuda).copy([(target, source)])
    training.enqueue("write", lambda: setattr(source, "value", 2))
    cuda.run([training, *cuda.sides])
    assert target.value == 2


def test_each_device_has_its_stream_and_all_are_held(cuda: FakeCuda) -> None:
    sources = [Tensor("cuda:0", 1, cuda), Tensor("cuda:1", 2, cuda), Tensor("cuda:0", 3, cuda)]
    targets = [Tensor("cpu", -1, cuda) for _ in sources]
    device = Cuda(cuda)
    events = device.copy(zip(targets, sources, strict=True))
    device.hold_training(events)
    for stream, source in zip([*cuda.training.values()], sources[:2], strict=True):
        stream.enqueue("write", lambda source=source: setattr(source, "value", 9))
    cuda.run([*cuda.training.values(), *cuda.sides])
    assert [target.value for target in targets] == [1, 2, 3]
    assert len(cuda.sides) == len(events) == 2
    device.copy(zip(targets, sources, strict=True))
    assert len(cuda.sides) == 2


def test_in_the_trainings_own_stream_nothing_has_to_be_held(cuda: FakeCuda) -> None:
    source, target = Tensor("cuda:0", 1, cuda), Tensor("cpu", -1, cuda)
    training = cuda.training["cuda:0"]
    (event,) = Cuda(cuda).copy([(target, source)], beside=False)
    training.enqueue("write", lambda: setattr(source, "value", 2))
    cuda.run([training])
    assert (target.value, event.over, cuda.sides) == (1, True, [])


def test_memory_that_is_copied_is_not_given_away_before(cuda: FakeCuda) -> None:
    source = Tensor("cuda:0", 1, cuda)
    Cuda(cuda).copy([(Tensor("cpu", -1, cuda), source)])
    assert source.used_by == cuda.sides


def test_host_memory_is_pinned_and_let_go(cuda: FakeCuda) -> None:
    device = Cuda(cuda)
    device.pin(4096, 100)
    assert cuda.registered == {4096: 100}
    device.unpin(4096)
    device.unpin(4096)
    assert not cuda.registered
    assert cuda.entered == [1, 1], "on the device of whoever trains, from any thread"


def test_memory_that_cannot_be_pinned_is_told(cuda: FakeCuda, caplog: pytest.LogCaptureFixture) -> None:
    cuda.error = 2
    device = Cuda(cuda)
    device.pin(4096, 100)
    device.unpin(4096)
    assert "100 bytes of host memory cannot be pinned (CUDA error 2)" in caplog.text
