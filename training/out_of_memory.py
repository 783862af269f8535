"""Memory that gave out, on a GPU or of the machine: what was asked for, and how less would do."""

import contextlib
import errno
from collections.abc import Iterator

import torch

from shards_spec.messages import tell

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # of torch: a plain RuntimeError, which names it


@contextlib.contextmanager
def out_of_memory_told(needs_less: str) -> Iterator[None]:
    """Ends the program with status 1 and two lines on stderr where the block runs out of memory.

    Args:
        needs_less: what the user can do to need less.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tell(f"stopped: {_reason(error)}")
        tell(needs_less)
        raise SystemExit(1) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: torch's, Python's or the system's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _CPU_ALLOCATOR in str(error)


def _reason(error: BaseException) -> str:
    """The error in one line; of the CPU's allocator without the place in torch's source that it begins with."""
    said = " ".join(str(error).split())
    return said[max(said.find(_CPU_ALLOCATOR), 0) :] or "out of memory"
