"""A fixed ring of shared batch slots that worker processes fill in place.

    main: slot, places of samples ──pipe──> worker: read, check, decode into the slot ──pipe──> main: slot is full

The slots are one anonymous shared mapping, made once: no batch is allocated, pickled or copied between processes
(fresh pages would cost more than decoding the JPEG). Workers know nothing but the shards' paths; what they read, and
where it lies, the main process tells them. A worker that dies or hangs ends the run with a message that names it and
the samples it was at; a worker whose main process is gone ends by itself.

Nothing is begun beside the first batch, so that it comes soon: where its samples lie has to be looked up first. From
then on more is begun than is given, until enough is under way.
"""

import atexit
import contextlib
import mmap
import multiprocessing
import os
import signal
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FBANK_DTYPE, FBANK_SHAPE, FRAME_SIZE, SAMPLE_RATE
from training.methods.interface import Reads
from training.stream.index import SamplePlace
from training.stream.pinned import Pinned, pin
from training.stream.reader import SampleReader
from training.stream.waiting import POLL_SECONDS, Stopping, StopWaiting, never

# B samples, F frames of each, S pixels a side, T fbank rows, M mel bins, W samples of sound.
_PAGE = mmap.PAGESIZE
_SLOTS_AHEAD = 2  # batches in work or ready for each worker
_SLOTS_LEAVING = 2  # more slots where a device copies out of them while the next batch is in hand
_BEGUN_AT_LEAST = 2  # batches, for one that is given, while fewer than wanted are under way
HANG_SECONDS = 120.0

Job = TypeVar("Job")


class WorkerError(RuntimeError):
    """A loader worker died or hangs; the message names it and the samples it was at."""


@dataclass(frozen=True)
class Slot:
    """Room for one batch, in memory that all processes share."""

    image: npt.NDArray[np.uint8]  # [B, F, S, S, 3]
    fbank: npt.NDArray[np.float16]  # [B, T, M]
    sound: npt.NDArray[np.int16]  # [B, W]; W is 0 where none is read
    heard: npt.NDArray[np.int32]  # [B], samples of sound that are the clip's; zeros follow


def make_slots(count: int, batch_size: int, reads: Reads = Reads()) -> tuple[mmap.mmap, list[Slot]]:  # noqa: B008
    """`count` slots for `batch_size` samples each, and the anonymous shared mapping that they lie in.

    Anonymous, so that the size of /dev/shm (64 MB in most containers) is no limit.
    """
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "image": ((batch_size, max(reads.frames, 1), FRAME_SIZE, FRAME_SIZE, 3), np.dtype(np.uint8)),
        "fbank": ((batch_size, *FBANK_SHAPE), FBANK_DTYPE),
        "sound": ((batch_size, round(reads.waveform_seconds * SAMPLE_RATE)), np.dtype(np.int16)),
        "heard": ((batch_size,), np.dtype(np.int32)),
    }
    sizes = {name: _whole_pages(int(np.prod(shape)) * dtype.itemsize) for name, (shape, dtype) in arrays.items()}
    memory = mmap.mmap(-1, count * sum(sizes.values()))
    slots, offset = [], 0
    for _ in range(count):
        slot = {}
        for name, (shape, dtype) in arrays.items():
            slot[name] = np.ndarray(shape, dtype, memory if sizes[name] else None, offset=offset if sizes[name] else 0)
            offset += sizes[name]
        slots.append(Slot(**slot))
    return memory, slots


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


@dataclass(frozen=True)
class Damage:
    """A sample that could not be read as it was written: its row in the batch, and what to say of it."""

    row: int
    message: str


def fill(reader: SampleReader, slot: Slot, rows: Sequence[int], places: Sequence[SamplePlace]) -> list[Damage]:
    """Reads the samples at `places` into rows of a slot. Returns those that are damaged; OSError as `read_into`."""
    damaged = []
    for row, place in zip(rows, places, strict=True):
        try:
            slot.heard[row] = reader.read_into(place, slot.image[row], slot.fbank[row], slot.sound[row])
        except DamagedSampleError as error:
            damaged.append(Damage(row=row, message=str(error)))
    return damaged


@dataclass(frozen=True)
class _Job:
    slot: int
    rows: list[int]
    places: list[SamplePlace]


@dataclass
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    jobs: deque[_Job]  # in work, oldest first
    done: dict[int, list[Damage] | OSError]  # slots that are full and not yet asked for; or why one is not
    since: float  # when it last began a job


Replace = Callable[[Any, Damage], SamplePlace]


class Ring:
    """The slots and the workers that fill them. Use it as a context manager.

    Args:
        tars: paths of the shards that places refer to.
        batch_size: the most samples of one batch.
        workers: processes; 0 fills the slots in this one, when a batch is asked for.
        hang_seconds: a worker that takes longer over one batch is taken to hang.
        keep_open: as of SampleReader.
        page_locked: whether CUDA may copy out of the slots while the host goes on (pinned.py).
        reads: what the places name of each sample.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        *,
        batch_size: int,
        workers: int,
        hang_seconds: float = HANG_SECONDS,
        keep_open: bool = True,
        page_locked: bool = False,
        reads: Reads = Reads(),  # noqa: B008 (frozen)
    ) -> None:
        self.hang_seconds = hang_seconds
        self._most_ahead = max(_SLOTS_AHEAD * workers, 1)
        count = self._most_ahead + 1 + (_SLOTS_LEAVING if page_locked else 0)
        self.memory, self.slots = make_slots(count, batch_size, reads)
        self._free = deque(range(len(self.slots)))
        self._leaving: deque[tuple[int, Any]] = deque()  # slots, and the events behind the copies out of them
        self._tars = tars
        self._keep_open = keep_open
        self._reader = SampleReader(tars, keep_open=keep_open)
        self._workers: list[_Worker] = []
        for _ in range(workers):
            self._workers.append(self._start_worker())
        # An error that nobody catches keeps its frames, and what they hold, to the end. Without this the interpreter
        # would wait for the workers then, and they for it.
        atexit.register(self.close)
        self._pinned: Pinned | None = pin(self.memory) if page_locked else None

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(
        self,
        jobs: Iterable[tuple[Job, list[SamplePlace]]],
        replace: Replace | None = None,
        ready: Callable[[], bool] | None = None,
        stopping: Stopping = never,
    ) -> Iterator[tuple[Job, Slot]]:
        """The batches of `jobs`, in their order.

        Args:
            jobs: (anything, where its samples lie) for each batch; the first part comes back with the slot.
            replace: gives the place of another sample for a damaged one, as often as it is asked; None: damage ends
                the run.
            ready: whether the next job comes without waiting; while it does not, batches in work are finished first.
                None: it always does.
            stopping: looked at while a batch is waited for.

        Yields:
            The job and the slot that holds its samples, valid until the next batch is asked for.

        Raises:
            DamagedSampleError: a sample is not as it was written.
            OSError: the system does not give one; it is never replaced.
            WorkerError: a worker died or hangs.
            StopWaiting: `stopping` said so.
        """
        waiting = iter(jobs)
        ahead: deque[tuple[Job, int, int]] = deque()  # job, slot, worker
        turn, begun, most = 0, 0, 1
        while True:
            self._free_slots(wait=not ahead and not self._free)
            while self._free and len(ahead) < most:
                if begun >= _BEGUN_AT_LEAST and self._is_full(*ahead[0][1:]):
                    break
                if ahead and ready is not None and not ready():
                    break
                if (following := next(waiting, None)) is None:
                    break
                job, places = following
                slot = self._free.popleft()
                worker = turn % max(len(self._workers), 1)
                turn += 1
                self._begin(worker, _Job(slot, list(range(len(places))), places))
                ahead.append((job, slot, worker))
                begun += 1
            if not ahead:
                return
            begun, most = 0, self._most_ahead
            job, slot, worker = ahead.popleft()
            while damaged := self._finish(slot, worker, stopping):
                if replace is None:
                    raise DamagedSampleError(damaged[0].message)
                places = [replace(job, damage) for damage in damaged]
                self._begin(worker, _Job(slot, [damage.row for damage in damaged], places))
            yield job, self.slots[slot]
            if self._pinned is None:
                self._free.append(slot)
            else:
                self._leaving.append((slot, self._pinned.mark()))

    def close(self) -> None:
        """Ends the workers and closes the shards."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()  # it holds nothing that has to be finished
        for worker in self._workers:
            worker.process.join()
        self._workers = []
        atexit.unregister(self.close)
        if self._pinned is not None:
            self._pinned.close()
            self._pinned = None
        self._reader.close()

    def _begin(self, number: int, job: _Job) -> None:
        """Gives a job to a worker; without workers it is done here and now."""
        if not self._workers:
            self._own = fill(self._reader, self.slots[job.slot], job.rows, job.places)
            return
        worker = self._workers[number]
        if not worker.jobs:
            worker.since = time.monotonic()
        worker.jobs.append(job)
        with contextlib.suppress(OSError):  # it is gone: _finish says so when its turn comes
            worker.pipe.send(job)

    def _finish(self, slot: int, number: int, stopping: Stopping) -> list[Damage]:
        """Waits until a worker has filled a slot. Returns what was damaged."""
        if not self._workers:
            return self._own
        worker = self._workers[number]
        while not self._is_full(slot, number, POLL_SECONDS):
            if stopping():
                raise StopWaiting
            if time.monotonic() - worker.since > self.hang_seconds:
                raise WorkerError(self._describe(worker, f"took over {self.hang_seconds:g} s"))
        outcome = worker.done.pop(slot)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def _is_full(self, slot: int, number: int, wait: float = 0.0) -> bool:
        """Whether a worker has filled a slot; gives it `wait` seconds to say so."""
        if not self._workers:
            return True
        worker = self._workers[number]
        while slot not in worker.done and worker.pipe.poll(wait):
            try:
                filled, outcome = worker.pipe.recv()
            except (EOFError, OSError):
                raise WorkerError(self._describe(worker, "died")) from None
            assert worker.jobs.popleft().slot == filled
            worker.done[filled] = outcome
            worker.since = time.monotonic()
        return slot in worker.done

    def _free_slots(self, *, wait: bool) -> None:
        """Frees the slots that the device has copied; with `wait` at least one, if there are any."""
        while self._leaving and (wait or self._leaving[0][1].query()):
            slot, copied = self._leaving.popleft()
            copied.synchronize()
            self._free.append(slot)
            wait = False

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("fork")  # the slots are shared, not copied
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work,
            args=(self._tars, self._keep_open, self.slots, theirs),
            daemon=True,
            name="loader",
        )
        process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours, jobs=deque(), done={}, since=time.monotonic())

    def _describe(self, worker: _Worker, what: str) -> str:
        worker.process.join(1.0)
        code = worker.process.exitcode
        how = "" if code is None else f" ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"
        places = worker.jobs[0].places
        at = f"{len(places)} samples from {self._reader.where(places[0])} on"
        return f"loader worker {worker.process.pid} {what}{how} while reading {at}"


def _work(
    tars: Sequence[Path],
    keep_open: bool,
    slots: list[Slot],
    pipe: "Connection[Any, Any]",
) -> None:
    """A worker's life: fill slots until the main process closes its end of the pipe."""
    _let_go_of_files(keep=pipe.fileno())
    # The main process decides when to stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    reader = SampleReader(tars, keep_open=keep_open)
    while True:
        try:
            job = pipe.recv()
            pipe.send((job.slot, _outcome(reader, slots[job.slot], job)))
        except (EOFError, OSError):
            os._exit(0)  # the main process is gone or done; no exit handlers of the forked copy of it


def _outcome(reader: SampleReader, slot: Slot, job: _Job) -> list[Damage] | OSError:
    """What comes of a job: the system's refusal is for the main process to tell."""
    try:
        return fill(reader, slot, job.rows, job.places)
    except OSError as error:
        return error


def _let_go_of_files(keep: int) -> None:
    """Drops this process's copies of the files and sockets that its parent had open, but one and the standard ones.

    A copy would keep a lock of the cache after the parent let go of it, and hide that the parent closed its end of a
    worker's pipe. The numbers stay taken, so that nothing that closes one of them later closes a file of ours.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):  # that of the listing itself is closed
            mode = os.fstat(number).st_mode
            if number > 2 and number != keep and (stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)
