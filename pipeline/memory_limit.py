"""How much memory a decoder process may take: asked of the kernel by the child, watched by its parent.

The kernel's limit acts before the memory is taken: the allocation that goes beyond it fails. It counts what a process
may write to alone (RLIMIT_DATA since Linux 4.7), so neither libraries nor address space that is only reserved, of
which decoders map a lot. Kernels of sandboxes may count less: there the parent ends a child whose resident memory is
beyond the limit, which it looks at some times a second.
"""

import contextlib
import resource
import sys
from pathlib import Path

_PAGE = resource.getpagesize()


def limit_own_memory(most: int) -> None:
    """From now on this process gets no more than `most` bytes of its own."""
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def resident(process: int | None) -> int:
    """Bytes of memory that a process holds; 0 where that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    return 0


def shown(size: int) -> str:
    """A size for people, as --worker-memory takes it."""
    return f"{size / 1e9:g}GB"
