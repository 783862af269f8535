"""A fixed ring of shared batch slots that worker processes fill in place.

    main: slot, sample numbers ──pipe──> worker: read, check, decode into the slot ──pipe──> main: slot is full

The slots are one anonymous shared mapping, made once: no batch is allocated, pickled or copied between processes
(fresh pages would cost more than decoding the JPEG). Workers know nothing but the index; what they read, and in
which order, the main process tells them. A worker that dies or hangs ends the run with a message that names it and
the samples it was at; a worker whose main process is gone ends by itself.
"""

import mmap
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FBANK_DTYPE, FBANK_SHAPE, FRAME_SIZE
from training.stream.index import DatasetIndex
from training.stream.reader import SampleReader

# B samples, S pixels a side, T fbank rows, M mel bins.
_PAGE = mmap.PAGESIZE
_SLOTS_AHEAD = 2  # batches in work or ready for each worker
HANG_SECONDS = 120.0

Job = TypeVar("Job")


class WorkerError(RuntimeError):
    """A loader worker died or hangs; the message names it and the samples it was at."""


@dataclass(frozen=True)
class Slot:
    """Room for one batch, in memory that all processes share."""

    image: npt.NDArray[np.uint8]  # [B, S, S, 3]
    fbank: npt.NDArray[np.float16]  # [B, T, M]


def make_slots(count: int, batch_size: int) -> tuple[mmap.mmap, list[Slot]]:
    """`count` slots for `batch_size` samples each, and the anonymous shared mapping that they lie in.

    Anonymous, so that the size of /dev/shm (64 MB in most containers) is no limit.
    """
    image_shape = (batch_size, FRAME_SIZE, FRAME_SIZE, 3)
    fbank_shape = (batch_size, *FBANK_SHAPE)
    image_bytes = _whole_pages(int(np.prod(image_shape)))
    slot_bytes = image_bytes + _whole_pages(int(np.prod(fbank_shape)) * FBANK_DTYPE.itemsize)
    memory = mmap.mmap(-1, count * slot_bytes)
    slots = [
        Slot(
            image=np.ndarray(image_shape, np.uint8, memory, offset=i * slot_bytes),
            fbank=np.ndarray(fbank_shape, FBANK_DTYPE, memory, offset=i * slot_bytes + image_bytes),
        )
        for i in range(count)
    ]
    return memory, slots


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def fill(reader: SampleReader, slot: Slot, numbers: list[int]) -> None:
    """Reads the samples `numbers` into the first rows of a slot."""
    for row, number in enumerate(numbers):
        reader.read_into(number, slot.image[row], slot.fbank[row])


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    jobs: deque[tuple[int, list[int]]]  # (slot, sample numbers) in work, oldest first
    since: float  # when it last began a job


class Ring:
    """The slots and the workers that fill them. Use it as a context manager.

    Args:
        index: the dataset.
        batch_size: the most samples of one batch.
        workers: processes; 0 fills the slots in this one, when a batch is asked for.
        hang_seconds: a worker that takes longer over one batch is taken to hang.
    """

    def __init__(
        self, index: DatasetIndex, *, batch_size: int, workers: int, hang_seconds: float = HANG_SECONDS
    ) -> None:
        self.index = index
        self.hang_seconds = hang_seconds
        self.memory, self.slots = make_slots(max(_SLOTS_AHEAD * workers, 1) + 1, batch_size)
        self._free = deque(range(len(self.slots)))
        self._reader = SampleReader(index)
        self._workers: list[_Worker] = []
        for _ in range(workers):
            self._workers.append(self._start_worker())

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(self, jobs: Iterable[tuple[Job, list[int]]]) -> Iterator[tuple[Job, Slot]]:
        """The batches of `jobs`, in their order.

        Args:
            jobs: (anything, sample numbers) for each batch; the first part comes back with the slot.

        Yields:
            The job and the slot that holds its samples, valid until the next batch is asked for.

        Raises:
            DamagedSampleError: a sample cannot be read as it was written.
            WorkerError: a worker died or hangs.
        """
        if not self._workers:
            for job, numbers in jobs:
                fill(self._reader, self.slots[0], numbers)
                yield job, self.slots[0]
            return
        waiting = iter(jobs)
        ahead: deque[tuple[Job, int, _Worker]] = deque()
        turn = 0
        while True:
            while len(ahead) < len(self.slots) - 1 and self._free:
                following = next(waiting, None)
                if following is None:
                    break
                job, numbers = following
                worker = self._workers[turn % len(self._workers)]
                turn += 1
                slot = self._free.popleft()
                self._send(worker, slot, numbers)
                ahead.append((job, slot, worker))
            if not ahead:
                return
            job, slot, worker = ahead.popleft()
            self._wait_for(worker, slot)
            yield job, self.slots[slot]
            self._free.append(slot)

    def close(self) -> None:
        """Ends the workers and closes the shards."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()  # it holds nothing that has to be finished
        for worker in self._workers:
            worker.process.join()
        self._workers = []
        self._reader.close()

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("fork")  # the index and the slots are shared, not copied
        ours, theirs = context.Pipe()
        inherited = [worker.pipe for worker in self._workers] + [ours]
        process = context.Process(
            target=_work, args=(self.index, self.slots, theirs, inherited), daemon=True, name="loader"
        )
        process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours, jobs=deque(), since=time.monotonic())

    def _send(self, worker: _Worker, slot: int, numbers: list[int]) -> None:
        if not worker.jobs:
            worker.since = time.monotonic()
        worker.jobs.append((slot, numbers))
        try:
            worker.pipe.send((slot, numbers))
        except OSError:  # it is gone: _wait_for says so when its turn comes
            return

    def _wait_for(self, worker: _Worker, slot: int) -> None:
        """Waits until `worker` has filled `slot`, the oldest of its jobs or one that is done already."""
        while any(waiting == slot for waiting, _ in worker.jobs):
            if not worker.pipe.poll(self.hang_seconds / 20):
                self._check_alive(worker)
                continue
            try:
                filled, error = worker.pipe.recv()
            except (EOFError, OSError):
                raise WorkerError(self._describe(worker, "died")) from None
            if error is not None:
                raise DamagedSampleError(error)
            done, _ = worker.jobs.popleft()
            assert done == filled
            worker.since = time.monotonic()

    def _check_alive(self, worker: _Worker) -> None:
        if not worker.process.is_alive() and not worker.pipe.poll():
            raise WorkerError(self._describe(worker, "died"))
        if time.monotonic() - worker.since > self.hang_seconds:
            raise WorkerError(self._describe(worker, f"took over {self.hang_seconds:g} s"))

    def _describe(self, worker: _Worker, what: str) -> str:
        worker.process.join(1.0)
        code = worker.process.exitcode
        how = "" if code is None else f" ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"
        numbers = worker.jobs[0][1]
        return (
            f"loader worker {worker.process.pid} {what}{how}"
            f" while reading {len(numbers)} samples from {self.index.where(numbers[0])} on"
        )


def _work(index: DatasetIndex, slots: list[Slot], pipe: Connection, inherited: list[Connection]) -> None:
    """A worker's life: fill slots until the main process closes its end of the pipe."""
    for connection in inherited:  # an open copy of another pipe's end would hide its closing
        connection.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    reader = SampleReader(index)
    while True:
        try:
            slot, numbers = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # the main process is gone or done; no exit handlers of the forked copy of it
        error = None
        try:
            fill(reader, slots[slot], numbers)
        except DamagedSampleError as damage:
            error = str(damage)
        answer: Any = (slot, error)
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)
