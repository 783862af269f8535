"""Page-locked batch slots, with what stands in for CUDA: what is called when, and that no slot is filled too early."""

import mmap

import numpy as np
import pytest

from tests.datasets import make_dataset
from training.stream import pinned
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream
from training.stream.pinned import pin
from training.stream.ring import Ring
from training.stream.shares import rank_shares


class FakeCuda:
    """Events are reached when the test says so, or when somebody waits for them."""

    def __init__(self, error: int = 0, available: bool = True) -> None:
        self.calls: list[tuple] = []
        self.error, self.available = error, available
        self.events: list[FakeEvent] = []

    def is_available(self):
        return self.available

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):
        self.calls.append(("register", address, size, flags))
        return self.error

    def cudaHostUnregister(self, address):
        self.calls.append(("unregister", address))
        return 0

    def cudaGetErrorString(self, error):
        return f"error {error}"

    def synchronize(self):
        self.calls.append(("synchronize",))

    def Event(self):
        self.events.append(FakeEvent(self.calls))
        return self.events[-1]


class FakeEvent:
    def __init__(self, calls) -> None:
        self.calls, self.recorded, self.reached = calls, False, False

    def record(self):
        self.recorded = True

    def query(self):
        assert self.recorded
        return self.reached

    def synchronize(self):
        assert self.recorded
        self.calls.append(("wait",))
        self.reached = True


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(make_dataset(tmp_path_factory.mktemp("data") / "shards", (9, 8)))


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr("training.stream.ring.pin", lambda memory: pin(memory, fake))
    return fake


def jobs(index, count):
    for i in range(count):
        yield i, index.places(np.arange(3 * i, 3 * i + 3) % 17)


def test_the_whole_mapping_is_registered_once_and_given_back(index, cuda):
    ring = Ring(index.tars, batch_size=3, workers=0, page_locked=True)
    (register,) = cuda.calls
    assert register == ("register", ring.slots[0].image.ctypes.data, len(ring.memory), 0)
    ring.close()
    ring.close()
    assert cuda.calls[1:] == [("synchronize",), ("unregister", register[1])]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("behind", [1, 3, 99])
def test_a_slot_is_not_filled_while_it_is_copied(index, cuda, workers, behind):
    """The device reaches the event behind each copy that many batches later, or when somebody waits for it."""
    with Ring(index.tars, batch_size=3, workers=workers, page_locked=True) as ring:
        in_use = []  # (slot, what it must hold until its event is reached)
        for number, (job, slot) in enumerate(ring.batches(jobs(index, 20))):
            assert job == number
            for event, busy, content in zip(cuda.events, *zip(*in_use, strict=True), strict=True) if in_use else ():
                assert event.reached or np.array_equal(busy.fbank, content)
                assert event.reached or busy is not slot
            in_use.append((slot, slot.fbank.copy()))
            if number >= behind:
                cuda.events[number - behind].reached = True
    assert number == 19 and len(cuda.events) == 20


def test_without_any_progress_of_the_device_the_loader_waits_for_it(index, cuda):
    with Ring(index.tars, batch_size=3, workers=0, page_locked=True) as ring:
        assert [job for job, _ in ring.batches(jobs(index, 12))] == list(range(12))
    assert ("wait",) in cuda.calls


def test_an_error_is_a_warning(index, capsys, monkeypatch):
    forgotten = []
    monkeypatch.setattr(pinned, "_forget_error", lambda: forgotten.append(True))
    fake = FakeCuda(error=2)
    monkeypatch.setattr("training.stream.ring.pin", lambda memory: pin(memory, fake))
    with Ring(index.tars, batch_size=3, workers=0, page_locked=True) as ring:
        assert len(list(ring.batches(jobs(index, 5)))) == 5
    assert (
        capsys.readouterr().err
        == f"warning: {len(ring.memory):,} bytes of batch slots cannot be page-locked: error 2\n"
    )
    assert [call[0] for call in fake.calls] == ["register"] and forgotten and not fake.events


def test_without_cuda_nothing_happens(index):
    assert pin(mmap.mmap(-1, 4096), FakeCuda(available=False)) is None
    shares = [list(rank_shares(SampleStream(index.counts, seed=1), Place(), steps=3, batch_size=4)) for _ in range(2)]
    first, second = (
        [(batch.keys, batch.fbank.clone()) for batch in load(index, share, seed=0, batch_size=4, workers=0, pin=on)]
        for share, on in zip(shares, (True, False), strict=True)
    )
    assert all(a[0] == b[0] and a[1].equal(b[1]) for a, b in zip(first, second, strict=True))
