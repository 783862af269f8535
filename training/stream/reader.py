"""Reads samples at their places, checks them, and decodes them into arrays that are already there.

A sample's frame and fbank lie next to each other in its tar, so one `preadv` fetches both: the JPEG and the
tar header behind it into a small buffer, the fbank's values straight to where the batch wants them.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from isal import isal_zlib

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FBANK_HEADER, FBANK_MEMBER, FRAME_MEMBER
from training.stream.index import SamplePlace

_OPEN_SHARDS = 128  # descriptors kept: AudioSet-2M has thousands of shards


class SampleReader:
    """Reads samples out of tars. Holds nothing but open files and a buffer; one a process.

    Args:
        keep_open: whether to keep shards open between samples. An open file takes its room on the disk even when
            it has been removed, so shards of a bounded cache are opened for each sample (some 10 µs).
    """

    def __init__(self, tars: Sequence[Path], *, keep_open: bool = True) -> None:
        self._tars = tars
        self._keep_open = keep_open
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first
        self._buffer = bytearray(1 << 16)

    def read_into(self, place: SamplePlace, image: npt.NDArray[np.uint8], fbank: npt.NDArray[np.float16]) -> None:
        """Reads the sample at `place` into `image`, uint8 [S, S, 3], and `fbank`, float16 [T, M], both contiguous.

        Raises:
            DamagedSampleError: the shard is gone or cut, or its bytes are not those that were written.
        """
        values = place.fbank_offset + len(FBANK_HEADER)
        head = self._head(values - place.frame_offset)
        fbank_bytes = fbank.view(np.uint8).data.cast("B")
        self._fetch(place, head, fbank_bytes)
        jpeg, header = head[: place.frame_length], head[-len(FBANK_HEADER) :]
        self._check(place, FRAME_MEMBER, isal_zlib.crc32(jpeg), place.frame_crc32)
        self._check(place, FBANK_MEMBER, isal_zlib.crc32(fbank_bytes, isal_zlib.crc32(header)), place.fbank_crc32)
        if header != FBANK_HEADER:
            raise DamagedSampleError(f"{self.where(place)}: its fbank is no .npy of float16 {fbank.shape}")
        try:
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=image, strict=True)
        except ValueError as error:  # the bytes are as written, but no JPEG of the right size
            raise DamagedSampleError(f"{self.where(place)}: its frame: {error}") from error

    def where(self, place: SamplePlace) -> str:
        """Shard, key and offset of a sample, for messages."""
        return f"{self._tars[place.shard]}: sample {place.key} at byte {place.offset}"

    def close(self) -> None:
        """Closes the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _head(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = bytearray(2 * size)
        return memoryview(self._buffer)[:size]

    def _fetch(self, place: SamplePlace, head: memoryview, fbank: memoryview) -> None:
        try:
            got = os.preadv(self._descriptor(place.shard), [head, fbank], place.frame_offset)
        except OSError as error:
            raise DamagedSampleError(f"{self.where(place)}: cannot be read ({error.strerror})") from error
        if not self._keep_open:
            self.close()
        if got != len(head) + len(fbank):
            raise DamagedSampleError(f"{self.where(place)}: the shard is cut at byte {place.frame_offset + got}")

    def _check(self, place: SamplePlace, member: str, found: int, recorded: int) -> None:
        if found != recorded:
            raise DamagedSampleError(
                f"{self.where(place)}: the crc32 of its {member} is {found:08x}, on record is {recorded:08x}"
            )

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            descriptor = os.open(self._tars[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor
