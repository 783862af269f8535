"""What a run writes for people and tools, beside its checkpoints.

RUN/config.json         the resolved configuration
RUN/metrics.jsonl       a line per logged step
RUN/keys-rank0.jsonl    with --trace-keys: the sample keys of each step, per rank
"""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from shards_spec.atomic import atomic_path
from shards_spec.errors import UserError, reason
from shards_spec.messages import warn

METRICS_FILE = "metrics.jsonl"
_LOCK_FILE = ".train.lock"
_NAMED = 3  # damaged lines


def keys_file(rank: int) -> str:
    """Name of the key trace of a rank."""
    return f"keys-rank{rank}.jsonl"


def lock_run(run: Path) -> IO[str]:
    """Keeps another train.py out of a run folder for as long as this process lives and the returned file is open.

    A record lock of the kernel: it ends with the process, however that ends; forked loader processes do not share it.

    Raises:
        UserError: another process holds it, or the folder cannot be made or written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / _LOCK_FILE).open("a+")
    except FileExistsError as error:
        raise UserError(f"--out {run} is a file: give a folder") from error
    except OSError as error:
        raise UserError(f"--out {run} cannot be written to ({reason(error)}): give another --out") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            warn(f"{run} cannot be locked ({error}): start no second run in it")
            return file
        file.seek(0)
        holder = file.read().strip() or "another run"
        raise UserError(f"{run} is in use by {holder}: wait for it, or use another --out") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


class StepLog:
    """A JSON-lines file with a `step` in every line, appended to and continued by a resumed run.

    Lines of steps that a resumed run takes again (after `last_step`) are dropped, and so are lines that a killed
    process or a power cut left damaged, with a warning.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        lines = step_lines(path, is_over=True)
        if damaged := [str(number) for number, line in enumerate(lines, start=1) if line is None]:
            which = ", ".join(damaged[:_NAMED]) + (", ..." if len(damaged) > _NAMED else "")
            warn(f"{path}: left out, damaged: line {which}")
        kept = [line for line in lines if line is not None and line["step"] <= last_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path, self._size = path, path.stat().st_size
        self._file = path.open("ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line, at once. One that cannot be written (a full disk) is left out, with a warning."""
        data = json.dumps(line).encode() + b"\n"
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += written
        except OSError as error:
            self._file.truncate(self._size)
            step = line["step"]
            warn(f"{self._path}: no line for step {step}: {error}")

    def close(self) -> None:
        """Makes the lines durable."""
        os.fsync(self._file.fileno())
        self._file.close()


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a step log that are whole; none where there is no file."""
    return [line for line in step_lines(path) if line is not None]


def step_lines(path: Path, *, is_over: bool = False) -> list[dict[str, Any] | None]:
    """A step log line by line, None for one that is damaged; no line where there is no file.

    Args:
        is_over: nobody writes it any more: what follows the last end of line is a damaged line, not one on its way.
    """
    if not path.is_file():
        return []
    *texts, rest = path.read_text(errors="replace").split("\n")
    return [_line(text) for text in ([*texts, rest] if is_over and rest else texts)]


def _line(text: str) -> dict[str, Any] | None:
    """A line of a step log; None where it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if type(step) is int and step > 0 else None
