"""What the system refuses, for the time of a block: the right to a file, open files, room for a file."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Nobody may use `path`, nor may root, who becomes nobody and can use less than that."""
    mode = path.stat().st_mode
    is_root = os.geteuid() == 0
    path.chmod(0)
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(mode)


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """No file may get longer than `size` bytes: what a full disk is to a writer."""
    with _limited(resource.RLIMIT_FSIZE, size):
        yield


@contextmanager
def open_files(more: int) -> Iterator[None]:
    """So many more files may be opened."""
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # holes below the highest would count too
    try:
        with _limited(resource.RLIMIT_NOFILE, max(fillers) + 1 + more):
            yield
    finally:
        for descriptor in fillers:
            os.close(descriptor)


@contextmanager
def _limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)
