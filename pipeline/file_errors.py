"""What the file system says when a raw file is opened or read: whether it is about the file or about the machine."""

import errno
import os
from pathlib import Path

from pipeline.clip_error import ClipError

# A full table of open files, a network disk that does not answer: nothing about the clip, which may be fine later.
_OF_THE_MACHINE = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
        errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNABORTED, errno.ECONNRESET,
    }
)  # fmt: skip


def is_of_the_machine(error: BaseException) -> bool:
    """Whether a clip met an error that says nothing about the clip."""
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


def machine_error(error: OSError, path: Path) -> OSError:
    """`error`, of whatever library, as the system's own, about `path`."""
    assert error.errno is not None
    return OSError(error.errno, os.strerror(error.errno), str(path))


def unreadable(error: OSError, path: Path) -> ClipError:
    """What to say of a clip whose file the system does not give.

    Raises:
        OSError: the machine is at fault, not the file.
    """
    if is_of_the_machine(error):
        raise machine_error(error, path) from error
    if error.errno in (errno.EACCES, errno.EPERM):
        return ClipError("unreadable", "permission denied: this user may not read the file")
    return ClipError("unreadable", f"the file cannot be opened: {error.strerror or error}")
