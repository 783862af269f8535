"""Page-locked batch slots: a CUDA device copies a batch out of them by itself, while the host goes on.

A copy from memory that is not page-locked has left it when the call returns; one from page-locked memory
(`.to(device, non_blocking=True)`) may still be under way. So a slot is filled again only when the device has passed
an event that was recorded behind the copy. Written from CUDA's documentation, not run on a GPU yet.
"""

import contextlib
import mmap
from typing import Any

import numpy as np
import torch

from shards_spec.messages import warn


class Pinned:
    """A mapping that CUDA knows as page-locked, until `close`.

    Args:
        cuda: torch.cuda, or what takes its place in tests.
    """

    def __init__(self, memory: mmap.mmap, cuda: Any) -> None:
        self._cuda = cuda
        self._address = _address(memory)

    def mark(self) -> Any:
        """An event behind all that the current stream of the current device was told so far."""
        event = self._cuda.Event()
        event.record()
        return event

    def close(self) -> None:
        """Gives the pages back, when nothing is copied out of them any more."""
        self._cuda.synchronize()
        self._cuda.cudart().cudaHostUnregister(self._address)


def pin(memory: mmap.mmap, cuda: Any = torch.cuda) -> Pinned | None:
    """Page-locks a mapping. None, and a line of warning, where that fails: copies are slower then, not wrong."""
    if not cuda.is_available():
        return None
    cudart = cuda.cudart()
    error = cudart.cudaHostRegister(_address(memory), len(memory), 0)
    if int(error):
        said = cudart.cudaGetErrorString(error)
        warn(f"{len(memory):,} bytes of batch slots cannot be page-locked: {said}")
        _forget_error()
        return None
    return Pinned(memory, cuda)


def _address(memory: mmap.mmap) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


def _forget_error() -> None:
    """CUDA keeps the error of a call until somebody asks: the next kernel would report it as its own."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")
