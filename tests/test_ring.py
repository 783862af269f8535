"""The ring of batch slots: workers that die or hang are named, slots are reused, nothing is left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.datasets import make_dataset
from tests.runs import ROOT
from training.stream.cache_folder import ShardLocks
from training.stream.index import open_index
from training.stream.reader import SampleReader
from training.stream.ring import Ring, WorkerError, make_slots
from training.stream.waiting import StopWaiting


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(make_dataset(tmp_path_factory.mktemp("data") / "shards", (9, 8)))


def jobs(index, count, size=3):
    for i in range(count):
        yield i, [index.place((i * size + k) % 17) for k in range(size)]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_slots_are_reused_and_hold_what_was_asked_for(index, workers):
    reader = SampleReader(index.tars)
    image, fbank = np.empty((224, 224, 3), np.uint8), np.empty((1024, 128), np.float16)
    with Ring(index.tars, batch_size=3, workers=workers) as ring:
        for turn in range(2):  # a second run of batches on the same slots
            seen = 0
            for (i, places), (job, slot) in zip(jobs(index, 30), ring.batches(jobs(index, 30)), strict=True):
                assert job == i
                for row, place in enumerate(places):
                    reader.read_into(place, image[None], fbank)
                    assert np.array_equal(slot.image[row, 0], image) and np.array_equal(slot.fbank[row], fbank)
                seen += 1
            assert seen == 30, turn


def test_one_batch_is_begun_before_the_first_and_then_enough(index):
    """What comes first is not kept waiting by what comes later; then two batches a worker are on their way."""
    begun = []

    def counted():
        for job in jobs(index, 100):
            begun.append(job[0])
            yield job

    with Ring(index.tars, batch_size=3, workers=3) as ring:
        batches = ring.batches(counted())
        counts = [-next(batches)[0] + len(begun) - 1 for _ in range(10)]  # begun behind the one in hand
    assert counts[0] == 0
    assert all(1 <= count <= 5 for count in counts[1:]) and counts == sorted(counts)
    assert counts[-1] == 5


def test_a_worker_that_dies_is_named(index):
    with Ring(index.tars, batch_size=3, workers=2) as ring:
        batches = ring.batches(jobs(index, 100))
        next(batches)
        victim = ring._workers[1].process.pid
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerError, match=rf"loader worker {victim} died \(SIGKILL\) while reading 3 samples from"):
            for _ in batches:
                pass


def test_a_worker_that_hangs_is_named(index):
    with Ring(index.tars, batch_size=3, workers=2, hang_seconds=1.0) as ring:
        batches = ring.batches(jobs(index, 100))
        next(batches)
        victim = ring._workers[0].process.pid
        os.kill(victim, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=rf"loader worker {victim} took over 1 s while reading 3 samples"):
            for _ in batches:
                pass


@pytest.mark.parametrize("stopped", [0.0, 0.3])
def test_waiting_can_be_broken_off(index, stopped):
    with Ring(index.tars, batch_size=3, workers=1) as ring:
        since = time.monotonic() + 1e9
        batches = ring.batches(jobs(index, 100), stopping=lambda: time.monotonic() - since >= stopped)
        next(batches)
        os.kill(ring._workers[0].process.pid, signal.SIGSTOP)
        since = time.monotonic()
        with pytest.raises(StopWaiting):
            for _ in batches:
                pass
        assert time.monotonic() - since < 5  # HANG_SECONDS are many more


def test_what_needs_no_waiting_is_given_in_spite_of_a_wish_to_stop(index):
    with Ring(index.tars, batch_size=3, workers=0) as ring:
        assert [job for job, _ in ring.batches(jobs(index, 4), stopping=lambda: True)] == [0, 1, 2, 3]


def test_a_slow_consumer_is_no_hang(index):
    with Ring(index.tars, batch_size=3, workers=1, hang_seconds=0.3) as ring:
        seen = []
        for job, _ in ring.batches(jobs(index, 8)):
            time.sleep(0.5)
            seen.append(job)
    assert seen == list(range(8))


def test_no_worker_is_left_behind(index):
    with Ring(index.tars, batch_size=3, workers=2) as ring:
        processes = [psutil.Process(worker.process.pid) for worker in ring._workers]
        next(ring.batches(jobs(index, 5)))
    assert not any(process.is_running() for process in processes)


def test_workers_keep_no_lock_of_their_main_process(index, tmp_path):
    """Fork copies descriptors, and a lock lives as long as any copy of its file: a shard would stay locked."""
    locks = ShardLocks(tmp_path)
    assert locks.exclusive(3)
    with Ring(index.tars, batch_size=3, workers=2) as ring:
        for _ in ring.batches(jobs(index, 4)):  # the workers are at work
            pass
        locks.close()
        assert ShardLocks(tmp_path).exclusive(3)


_HOLDS_A_RING = """
import sys, time
from pathlib import Path
from training.stream.index import open_index
from training.stream.ring import Ring
ring = Ring(open_index(Path(sys.argv[1])).tars, batch_size=2, workers=3)
print(*[worker.process.pid for worker in ring._workers], flush=True)
time.sleep(60)
"""


def test_workers_end_when_their_main_process_is_killed(index):
    command = [sys.executable, "-c", _HOLDS_A_RING, str(index.folders[0])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers):
        assert time.monotonic() < deadline, "workers live on without their main process"
        time.sleep(0.05)


_FAILS_IN_A_LOOP = """
import sys
from pathlib import Path
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.shares import all_shares
index = open_index(Path(sys.argv[1]))
batches = load(index, all_shares(len(index), 2), seed=0, batch_size=2, workers=2)
next(batches)
raise ArithmeticError("out of memory, say")
"""


def test_an_error_that_nobody_catches_ends_the_process(index):
    command = [sys.executable, "-c", _FAILS_IN_A_LOOP, str(index.folders[0])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.endswith("ArithmeticError: out of memory, say\n")


def test_slots_do_not_overlap():
    memory, slots = make_slots(3, 2)
    for value, slot in enumerate(slots):
        slot.image[:] = value
        slot.fbank[:] = -value
    for value, slot in enumerate(slots):
        assert (slot.image == value).all() and (slot.fbank == -value).all()
        assert slot.image.ctypes.data % 4096 == 0 and slot.fbank.ctypes.data % 4096 == 0
    wasted = len(memory) - sum(s.image.nbytes + s.fbank.nbytes for s in slots)
    assert 0 <= wasted < 9 * 4096  # a page of each slot holds what sound there is
