"""Who may write a dataset folder at the same time: one whole make-shards, or the tasks of one array.

local folder   .make-shards.lock, flocked: alone by a whole run, together by the tasks of an array; and a flocked
               .make-shards.task-I-of-N.lock for each task. The kernel lets go when a process ends, however it ends.
object store   the same names as leases (lease.py): they refuse the obvious, a second run that starts while another
               one is at work. Two that start within the same second are not kept apart.
"""

import contextlib
import errno
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.array_task import Share
from pipeline.lease import lease, living
from shards_spec import storage
from shards_spec.errors import UserError
from shards_spec.messages import warn
from shards_spec.storage import Place, Remote

_LOCK_FILE = ".make-shards.lock"
_TASK_FILE = re.compile(r"\.make-shards\.task-(\d+)-of-(\d+)\.lock")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def folder_lock(folder: Place, share: Share) -> contextlib.AbstractContextManager[None]:
    """Keeps others out of the folder while the block runs.

    Raises:
        UserError: others are at work there.
    """
    return _local(folder, share) if isinstance(folder, Path) else _remote(folder, share)


@contextlib.contextmanager
def _local(folder: Path, share: Share) -> Iterator[None]:
    with (folder / _LOCK_FILE).open("a") as file:
        if not _flock(file, fcntl.LOCK_EX if share.is_whole else fcntl.LOCK_SH):
            raise _refusal(folder, share)
        if share.is_whole:
            for name in _tasks(folder):
                (folder / name).unlink(missing_ok=True)
            yield
            return
        for name, other in _tasks(folder).items():
            with (folder / name).open("a") as task:
                if other.count != share.count and not _flock(task, fcntl.LOCK_SH):
                    raise _refusal(folder, share, other)
        with (folder / _task_name(share)).open("a") as task:
            if not _flock(task, fcntl.LOCK_EX):
                raise _refusal(folder, share, share)
            yield


def _flock(file: IO[str], mode: int) -> bool:
    """Whether the lock was to be had; where the file system has no locks it is, with a warning."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        told = f"{file.name} cannot be locked ({error.strerror}): see that no other make-shards writes there"
        warn(told)
    return True


@contextlib.contextmanager
def _remote(folder: Remote, share: Share) -> Iterator[None]:
    tasks = _tasks(folder)
    rivals = [name for name, other in tasks.items() if share.is_whole or other.count != share.count]
    if alive := living([folder / name for name in (_LOCK_FILE, *rivals)]):
        raise _refusal(folder, share, tasks.get(alive[0].name))
    for dead in rivals:
        storage.remove(folder / dead)
    with lease(folder / (_LOCK_FILE if share.is_whole else _task_name(share))) as ours:
        if not ours:
            raise _refusal(folder, share, None if share.is_whole else share)
        yield


def _tasks(folder: Place) -> dict[str, Share]:
    """The tasks that have been at work in a folder, by the name of their lock file."""
    found = {name: _TASK_FILE.fullmatch(name) for name in storage.sizes(folder)}
    return {name: Share(int(match[1]), int(match[2])) for name, match in found.items() if match}


def _task_name(share: Share) -> str:
    return f".make-shards.task-{share.index}-of-{share.count}.lock"


def _refusal(folder: Place, share: Share, other: Share | None = None) -> UserError:
    if other is None:
        return UserError(f"another make-shards is writing {folder}: let it end, or give another --out")
    if other == share:
        return UserError(f"{share} is at work in {folder} already: let it end")
    return UserError(f"{other} of an array is at work in {folder}: let it end, or give another --out")
