"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
# SMB, vboxsf and many FUSE file systems: what was renamed is there, and none of them could make it more durable.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block ends well, it becomes `path`, durably.

    Of several writers of the same path, on one machine or on several, the last one wins: each has a temporary file of
    its own. What a killed writer leaves ends in `.tmp`, and no reader looks at it.

    Raises:
        OSError: it cannot be written; `filename` is `path`, which the system does not say where the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # where nothing can be written there is nothing to remove
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def new_file(path: Path, content: bytes) -> bool:
    """Writes a file if there is none; False where there is one. Of several writers one is told True, on NFS too."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_bytes(content)
        path.hardlink_to(temporary)  # fails where the name is taken, and is never half done
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # ours: NFS may repeat a request whose answer was lost
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _exclusively(path, content)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _exclusively(path: Path, content: bytes) -> bool:
    """`new_file` where the file system has no hard links: readers may meet the file before its content."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut, where the file system can do that for a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
