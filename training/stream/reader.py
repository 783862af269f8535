"""Reads samples at their offsets, checks them, and decodes them into arrays that are already there.

A sample's frame and fbank lie next to each other in its tar, so one `preadv` fetches both: the JPEG and the
tar header behind it into a small buffer, the fbank's values straight to where the batch wants them.
"""

import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import simplejpeg
from isal import isal_zlib

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FBANK_HEADER, FBANK_MEMBER, FRAME_MEMBER
from training.stream.index import DatasetIndex

_OPEN_SHARDS = 128  # descriptors kept: AudioSet-2M has thousands of shards


class SampleReader:
    """Reads samples of one dataset. Holds nothing but open files and a buffer; one a process."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._frames = index.members[FRAME_MEMBER]
        self._fbanks = index.members[FBANK_MEMBER]
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first
        self._buffer = bytearray(1 << 16)

    def read_into(self, number: int, image: npt.NDArray[np.uint8], fbank: npt.NDArray[np.float16]) -> None:
        """Reads sample `number` into `image`, uint8 [S, S, 3], and `fbank`, float16 [T, M], both contiguous.

        Raises:
            DamagedSampleError: the shard is gone or cut, or its bytes are not those that were written.
        """
        begin, length = int(self._frames.offset[number]), int(self._frames.length[number])
        values = int(self._fbanks.offset[number]) + len(FBANK_HEADER)
        head = self._head(values - begin)
        fbank_bytes = fbank.view(np.uint8).data.cast("B")
        self._fetch(number, begin, head, fbank_bytes)
        self._check(number, FRAME_MEMBER, isal_zlib.crc32(head[:length]), self._frames.crc32[number])
        header = head[-len(FBANK_HEADER) :]
        crc32 = isal_zlib.crc32(fbank_bytes, isal_zlib.crc32(header))
        self._check(number, FBANK_MEMBER, crc32, self._fbanks.crc32[number])
        if header != FBANK_HEADER:
            raise DamagedSampleError(f"{self.index.where(number)}: its fbank is no .npy of float16 {fbank.shape}")
        try:
            simplejpeg.decode_jpeg(head[:length], "RGB", buffer=image, strict=True)
        except ValueError as error:  # the bytes are as written, but no JPEG of the right size
            raise DamagedSampleError(f"{self.index.where(number)}: its frame: {error}") from error

    def close(self) -> None:
        """Closes the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _head(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = bytearray(2 * size)
        return memoryview(self._buffer)[:size]

    def _fetch(self, number: int, begin: int, head: memoryview, fbank: memoryview) -> None:
        try:
            got = os.preadv(self._descriptor(int(self.index.shard[number])), [head, fbank], begin)
        except OSError as error:
            raise DamagedSampleError(f"{self.index.where(number)}: cannot be read ({error.strerror})") from error
        if got != len(head) + len(fbank):
            raise DamagedSampleError(f"{self.index.where(number)}: the shard is cut {got} bytes after byte {begin}")

    def _check(self, number: int, member: str, found: int, recorded: np.uint32) -> None:
        if found != recorded:
            raise DamagedSampleError(
                f"{self.index.where(number)}: the crc32 of its {member} is {found:08x}, on record is {recorded:08x}"
            )

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            path = self.index.folder / self.index.dataset.shards[shard].name
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor
