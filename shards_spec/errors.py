"""The kinds of errors that a person meets; anything else is a defect of ours.

UserError            what the user can mend, files that are damaged among it
DamagedSampleError   a sample's bytes are not those that were written
OSError              the system refuses: no right, no room, a disk or a server that fails. It says nothing of what a
                     file holds, so nobody calls the file damaged, and nobody goes on without it.
"""

import errno
import os

_NEXT = {
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EROFS: "mount it for writing, or name another place",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EMFILE: "raise the limit, ulimit -n",
    errno.ENFILE: "end other programs, or raise fs.file-max",
    errno.EIO: "see whether its disk or server is well",
    errno.ESTALE: "see whether its server is well, or mount it again",
}


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what, where, got, expected, what to do.

    Every command prints it as `COMMAND: error: MESSAGE` without a traceback and exits with status 2.
    """


class DamagedSampleError(RuntimeError):
    """Bytes of a shard are not what its index says. The message names shard, key and byte offset."""


def is_refusal(error: BaseException) -> bool:
    """Whether the system refuses, by an error's number. Libraries have OSErrors without one, on what a file holds; and
    whoever believes a damaged file looks for places that no file has, which is EINVAL.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def reason(error: OSError) -> str:
    """What the system says and what to do about it, in one line, as `Too many open files: raise the limit, ulimit -n`.

    The file is not in it; `refusal` names it too.
    """
    said = " ".join(str(error.strerror or error).split())
    if error.errno is not None and ". Detail: [errno" in said:  # pyarrow's, around the system's own words
        said = os.strerror(error.errno)
    is_its_own = error.errno is not None and said == os.strerror(error.errno)  # else a library's words, of its own case
    return f"{said}: {_NEXT[error.errno]}" if is_its_own and error.errno in _NEXT else said


def refusal(error: OSError) -> str:
    """One line about an error of the system: the file, where one is known, and the `reason`."""
    return f"{error.filename}: {reason(error)}" if error.filename and error.strerror else reason(error)
