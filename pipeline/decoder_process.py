"""Clips are made in a process of their own, because decoders hang and crash on damaged files.

    parent thread ──(path, row)──> child          the child always has the next clip waiting
                  <──Encoded, Failure or Defect──

A clip that takes too long, too much memory, or the child with it, costs that clip alone: a new child goes on with the
next.
Children end with their parent, however it ends: the pipe closes, and the kernel kills those that hang in a decoder.
"""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.clip_error import ClipError
from pipeline.encode_sample import Encoded
from pipeline.file_errors import is_of_the_machine
from pipeline.memory_limit import limit_own_memory, resident, shown
from shards_spec.tables import Reason

Job = tuple[Path, dict[str, Any]]  # the file, and the clip's row in the plan
Make = Callable[[Path, dict[str, Any]], Encoded]


class Failure(NamedTuple):
    """A clip without a sample: columns reason and detail of its row."""

    reason: Reason
    detail: str


class _Defect(NamedTuple):
    """An exception that is no clip's fault."""

    trace: str


class _OutOfMemory(NamedTuple):
    """The clip, with what earlier ones left in the child, needs more memory than it may take."""


class _MachineTrouble(NamedTuple):
    """An error of the file system that says nothing about the clip: errno, and the file that it was met with."""

    number: int
    path: str


class DecoderDefectError(RuntimeError):
    """Preparing a clip raised what no damaged file should raise: a mistake in the program."""


class StoppedError(RuntimeError):
    """The run is to end; this shard is not finished."""


_AHEAD = 2  # clips sent and not yet answered: one in work, one waiting
_POLL = 0.05  # seconds until a stop is noticed, and between two looks at the child's memory
# Bytes that a child may gain before it is replaced, between two clips. decord 0.6 loses the sound of every clip, 1.8 MB
# for 10 s (https://github.com/dmlc/decord/issues/189); with PyAV a child gains 70 MB and stays there.
_MAY_GROW = 300_000_000
_START_SECONDS = 180.0  # for a child to import its modules, on a slow network disk
_DECODER_PACKAGES = {"av", "decord"}
# What children import: make_shards' own imports too, multiprocessing runs the main module again in each child.
_PRELOAD = ["pipeline.make_shards", "pipeline.fbank", "pipeline.frame", "pipeline.decode"]
_MAIN_PACKAGES = ("ray",)  # what other main modules import, where make-shards' own is not the main one
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
# A socket's name has at most 107 bytes on Linux, and multiprocessing adds /pymp-xxxxxxxx/listener-xxxxxxxx.
_LONGEST_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
_PR_SET_PDEATHSIG = 1

_context = multiprocessing.get_context("forkserver")
_lock = threading.Lock()  # multiprocessing's bookkeeping of children is not made for threads


def start_fork_server() -> None:
    """Starts, in the background, the process that children are forked from, with all imports done. Once is enough.

    It and its children do not notice SIGHUP, which reaches all processes of a terminal: the parent decides.
    """
    with _lock, _short_socket_name(), _blocked(signal.SIGHUP):
        before = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(_ONE_THREAD)
        try:
            _context.set_forkserver_preload([*_PRELOAD, *(name for name in _MAIN_PACKAGES if name in sys.modules)])
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def _short_socket_name() -> Iterator[None]:
    """Lets multiprocessing choose its folder, for good, in /tmp where TMPDIR is too long for a socket in it."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Processes that are started within the block have a signal blocked, and so have their children."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DecoderProcess:
    """A child process that makes samples, replaced when it is lost. For one thread; use it in a `with` block."""

    def __init__(self, make: Make, *, timeout: float, memory: int, stop: threading.Event) -> None:
        """
        Args:
            make: makes a sample, in the child; it must be picklable.
            timeout: seconds that a clip may take.
            memory: bytes that the child may take.
            stop: when set, `outcomes` raises StoppedError.
        """
        self._make, self._timeout, self._memory, self._stop = make, timeout, memory, stop
        self._process: ForkServerProcess | None = None
        self._connection: Connection[Any, Any] | None = None
        self._answers = 0  # of this child
        self._first_resident = self._last_resident = 0  # bytes that it held before its first clip, and lately

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[Encoded | Failure]:
        """The outcome of each job, in order.

        Raises:
            DecoderDefectError: the program, not the clip, is at fault.
            OSError: the machine is: it cannot open files, or does not reach them.
            StoppedError: `stop` was set.
        """
        waiting = iter(jobs)
        sent: deque[Job] = deque()
        while True:
            has_grown = self.resident - self._first_resident > _MAY_GROW
            if has_grown and not sent:
                self._end()
                has_grown = False
            while not has_grown and len(sent) < _AHEAD and (job := next(waiting, None)) is not None:
                sent.append(job)
                if self._connection is not None:
                    self._send(job)
            if not sent:
                return
            if self._connection is None:
                self._start()
                for job in sent:
                    self._send(job)
            is_fresh = self._answers == 0
            outcome = self._answer(sent[0])
            if isinstance(outcome, _OutOfMemory | _MachineTrouble):
                self._end()
                if not is_fresh:
                    continue  # once more, in a new child: what it needs must not depend on the clips before it
                if isinstance(outcome, _MachineTrouble):
                    raise OSError(outcome.number, os.strerror(outcome.number), outcome.path)
                outcome = Failure("crashed", f"needs more memory than --worker-memory {shown(self._memory)}")
            sent.popleft()
            yield outcome

    @property
    def resident(self) -> int:
        """Bytes of memory that the child holds, 0 where there is none."""
        return 0 if self._process is None else resident(self._process.pid)

    def _start(self) -> None:
        with _lock:
            here, there = _context.Pipe()
            process = _context.Process(target=_serve, args=(there, self._make, self._memory), daemon=True)
            process.start()
            there.close()
        self._process, self._connection = process, here
        self._answers = self._last_resident = 0
        try:
            if not self._wait(_START_SECONDS):
                raise DecoderDefectError(f"the decoder process was not ready after {_START_SECONDS:g} s")
            here.recv()
        except MemoryError:
            told = f"the decoder process takes more than --worker-memory {shown(self._memory)} before its first clip"
            raise DecoderDefectError(told) from None
        except (EOFError, OSError):
            raise DecoderDefectError(f"the decoder process {self._end()} before its first clip") from None
        self._first_resident = self.resident

    def _send(self, job: Job) -> None:
        assert self._connection is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: the answer will be missing
            self._connection.send(job)

    def _answer(self, job: Job) -> Encoded | Failure | _OutOfMemory | _MachineTrouble:
        assert self._connection is not None
        try:
            if not self._wait(self._timeout):
                self._end()
                return Failure("timeout", f"took longer than {self._timeout:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            return Failure("crashed", f"the decoder process {self._end()}")
        except MemoryError:
            return _OutOfMemory()
        self._answers += 1
        if isinstance(answer, _Defect):
            path, row = job
            raise DecoderDefectError(f"clip {row['key']} ({path}): {answer.trace}")
        assert isinstance(answer, Encoded | Failure | _OutOfMemory | _MachineTrouble)
        return answer

    def _wait(self, seconds: float) -> bool:
        """Whether the child has something to say within `seconds`; its death counts.

        Raises:
            MemoryError: the child holds more memory than it may.
            StoppedError: the run is to end.
        """
        assert self._connection is not None and self._process is not None
        deadline = time.monotonic() + seconds
        while not self._stop.is_set():
            left = deadline - time.monotonic()
            if self._connection.poll(max(0.0, min(left, _POLL))):
                return True
            if left <= 0:
                return False
            self._last_resident = self.resident
            if self._last_resident > self._memory:
                raise MemoryError
        raise StoppedError

    def _end(self) -> str:
        """Ends the child, whatever it does. Returns how it ended, for people."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return "was not running"
        connection.close()
        process.join(0.5)  # dead already, or ends because its pipe is closed
        with _lock:
            process.kill()
            process.join(5)
            status = process.exitcode
        if status is None or status >= 0:
            return f"ended with status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL or self._last_resident > self._memory / 2 else ""
        return f"was killed by {signal.Signals(-status).name}{hint}"


def _serve(connection: "Connection[Any, Any]", make: Make, memory: int) -> None:
    """The child: answers jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _die_with_parent()
    limit_own_memory(memory)
    # The parent closes its end when it wants no more: the child may be waiting for a clip then, or answering.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send("ready")
        _silence()
        while True:
            path, row = connection.recv()
            connection.send(_attempt(make, path, row))


def _attempt(
    make: Make, path: Path, row: dict[str, Any]
) -> Encoded | Failure | _OutOfMemory | _MachineTrouble | _Defect:
    """Exceptions become answers. Those of a file, of memory and from inside a decoder are the clip's fault; those of
    the machine and any other, which is ours, stop the run."""
    try:
        return make(path, row)
    except ClipError as error:
        return Failure(error.reason, error.detail)
    except MemoryError:
        return _OutOfMemory()
    except OSError as error:
        if is_of_the_machine(error):
            assert error.errno is not None
            return _MachineTrouble(error.errno, str(error.filename or path))
        return Failure("decode_error", _one_line(error))
    except Exception as error:  # noqa: BLE001 (nothing is swallowed: it goes to the parent, which raises it)
        if _from_decoder(error):
            return Failure("decode_error", _one_line(error))
        return _Defect(traceback.format_exc())


def _from_decoder(error: Exception) -> bool:
    """Whether the innermost frames of the traceback belong to a decoder's package."""
    innermost = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    packages = {innermost.split(".")[0], type(error).__module__.split(".")[0]}
    return bool(packages & _DECODER_PACKAGES)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _die_with_parent() -> None:
    """Asks the kernel for SIGKILL when the fork server is gone, which ends with the parent.

    It notices the parent's end by a pipe of which every child inherits the writing end: one that hangs in a decoder
    would keep the server, and thereby itself, alive.
    """
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _silence() -> None:
    """FFmpeg reports every damaged packet on stderr: what counts is in the shard's table."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
