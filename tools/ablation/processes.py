"""A command with all the processes that come of it: waited for and stopped together, whoever started them.

`accelerate launch` ends at SIGTERM and leaves its training process behind; torchrun gives each worker a session of its
own. So the processes of a job are those of its session and all that descend from them.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_LOOK_EVERY = 0.1  # seconds


class Job:
    """One command in a session of its own, so that a terminal's Ctrl-C reaches its processes through `stop` alone."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        self.session = self._process.pid

    def wait(self) -> int:
        """The exit status of the command. Where it failed, what it left in its session is stopped before."""
        ended = os.waitid(os.P_PID, self.session, os.WEXITED | os.WNOWAIT)  # nobody else is given its number yet
        if ended is not None and ended.si_status:
            stop([self])
        return self._process.wait()


def stop(jobs: Iterable[Job]) -> None:
    """SIGTERM to every process of the jobs, once each; returns when all have ended, after training has saved."""
    sessions = {job.session for job in jobs}
    told: set[psutil.Process] = set()
    while alive := {process for process in _members(sessions) | told if _is_alive(process)}:
        for process in alive - told:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        told |= alive
        time.sleep(_LOOK_EVERY)  # psutil.wait_procs would take the exit status away from `Job.wait`


def _members(sessions: set[int]) -> set[psutil.Process]:
    """The processes of sessions, and all that descend from them, in whatever session."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) in sessions:
                found |= {process, *process.children(recursive=True)}
    return found


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
