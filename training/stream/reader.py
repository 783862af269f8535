"""Reads samples at their places, checks them, and decodes them into arrays that are already there.

What lies together in a tar comes with one `preadv`: JPEGs, FLAC and the tar headers between them into a small buffer,
the fbank's values straight to where the batch wants them. Members that are not asked for are not read.
"""

import errno
import io
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import soundfile
from isal import isal_zlib

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FBANK_BYTES, FBANK_HEADER, SAMPLE_RATE
from training.stream.index import Payload, SamplePlace

_OPEN_SHARDS = 128  # descriptors kept: AudioSet-2M has thousands of shards
_OPEN_ANEW = (errno.EMFILE, errno.ENFILE, errno.ESTALE)  # may pass when the open shards are closed
_TOGETHER = 4096  # bytes between two members that are read over: tar headers and padding take up to 2,047


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
        self._buffer = memoryview(bytearray(1 << 16))

    def read_into(
        self,
        place: SamplePlace,
        images: npt.NDArray[np.uint8],
        fbank: npt.NDArray[np.float16],
        sound: npt.NDArray[np.int16] | None = None,
    ) -> int:
        """Reads the sample at `place` into arrays that are contiguous, and of the sizes that it asks for.

        Args:
            images: uint8 [F, S, S, 3], its frames; left as they are where the place names none.
            fbank: float16 [T, M].
            sound: int16 [samples], where the place names sound; zeros follow a clip that is shorter.

        Returns:
            How many samples of sound are the clip's.

        Raises:
            DamagedSampleError: the shard is gone or cut, or its bytes are not those that were written.
            OSError: the system does not give them, which says nothing of what they are; `filename` is `where`.
        """
        fbank_bytes = fbank.view(np.uint8).data.cast("B")
        found = self._fetch(place, fbank_bytes)
        self._check_fbank(place, found[place.fbank], fbank_bytes)
        for payload, image in zip(place.frames, images, strict=bool(place.frames)):
            jpeg = found[payload]
            self._check(place, payload, isal_zlib.crc32(jpeg))
            try:
                simplejpeg.decode_jpeg(jpeg, "RGB", buffer=image, strict=True)
            except ValueError as error:  # the bytes are as written, but no JPEG of the right size
                raise DamagedSampleError(f"{self.where(place)}: its {payload.member}: {error}") from error
        if place.sound is None or sound is None:
            return 0
        flac = found[place.sound]
        self._check(place, place.sound, isal_zlib.crc32(flac))
        try:
            return _decode_sound(flac, place.sound_at, sound)
        except (soundfile.SoundFileError, ValueError) as error:
            raise DamagedSampleError(f"{self.where(place)}: its {place.sound.member}: {error}") from error

    def where(self, place: SamplePlace) -> str:
        """Shard, key and offset of a sample, for messages."""
        return f"{self._tars[place.shard]}: sample {place.key} at byte {place.offset}"

    def close(self) -> None:
        """Closes the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _fetch(self, place: SamplePlace, fbank: memoryview) -> dict[Payload, memoryview]:
        """The bytes of all members that the place names; of the fbank its header, for the rest goes to `fbank`."""
        payloads = {*place.frames, place.fbank} | (set() if place.sound is None else {place.sound})
        in_order = sorted(payloads, key=_offset)
        room = in_order[-1].offset + in_order[-1].length - in_order[0].offset
        if room > len(self._buffer):
            self._buffer = memoryview(bytearray(2 * room))
        found: dict[Payload, memoryview] = {}
        used = 0
        for run in _runs(in_order):
            used = self._fetch_run(place, run, fbank, found, used)
        if not self._keep_open:
            self.close()
        return found

    def _fetch_run(
        self, place: SamplePlace, run: list[Payload], fbank: memoryview, found: dict[Payload, memoryview], used: int
    ) -> int:
        """Reads members that lie together, with one call; returns how much of the buffer is in use then."""
        buffer, into = self._buffer, []
        at, first = (
            run[0].offset,
            used,
        )  # what the next byte of the tar is, and where the open piece of the buffer begins
        for payload in run:
            used += payload.offset - at
            size = len(FBANK_HEADER) if payload is place.fbank else payload.length
            found[payload] = buffer[used : used + size]
            used += size
            at = payload.offset + payload.length
            if payload is place.fbank:
                into += [buffer[first:used], fbank]
                first = used
        if used > first:
            into.append(buffer[first:used])
        got = self._read(place, into, run[0].offset)
        if got != at - run[0].offset:
            raise DamagedSampleError(f"{self.where(place)}: the shard is cut at byte {run[0].offset + got}")
        return used

    def _read(self, place: SamplePlace, into: list[memoryview], offset: int) -> int:
        """How many bytes come from `offset` on."""
        try:
            try:
                return os.preadv(self._descriptor(place.shard), into, offset)
            except OSError as error:
                if error.errno not in _OPEN_ANEW or not self._open:
                    raise
                self.close()
                return os.preadv(self._descriptor(place.shard), into, offset)
        except FileNotFoundError as error:
            raise DamagedSampleError(f"{self.where(place)}: the shard is gone") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.where(place)) from error

    def _check_fbank(self, place: SamplePlace, header: memoryview, values: memoryview) -> None:
        self._check(place, place.fbank, isal_zlib.crc32(values, isal_zlib.crc32(header)))
        if header != FBANK_HEADER or place.fbank.length != FBANK_BYTES:
            raise DamagedSampleError(f"{self.where(place)}: its {place.fbank.member} is no .npy of the right shape")

    def _check(self, place: SamplePlace, payload: Payload, found: int) -> None:
        if found != payload.crc32:
            raise DamagedSampleError(
                f"{self.where(place)}: the crc32 of its {payload.member} is {found:08x},"
                f" on record is {payload.crc32:08x}"
            )

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            descriptor = os.open(self._tars[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor


def _offset(payload: Payload) -> int:
    return payload.offset


def _runs(payloads: Sequence[Payload]) -> Iterator[list[Payload]]:
    """Payloads in the order of the tar, those that lie together in one list."""
    run = [payloads[0]]
    for payload in payloads[1:]:
        if payload.offset - (run[-1].offset + run[-1].length) > _TOGETHER:
            yield run
            run = []
        run.append(payload)
    yield run


def _decode_sound(flac: memoryview, at: float, into: npt.NDArray[np.int16]) -> int:
    """Decodes as much sound as `into` holds, from where it begins as a share of what is left over of the clip."""
    with soundfile.SoundFile(io.BytesIO(flac)) as file:
        if file.samplerate != SAMPLE_RATE or file.channels != 1:
            raise ValueError(f"it has {file.channels} channels at {file.samplerate} Hz, expected 1 at {SAMPLE_RATE}")
        left_over = max(file.frames - len(into), 0)
        file.seek(round(at * left_over))
        got = len(file.read(dtype="int16", out=into[: min(file.frames, len(into))]))
        into[got:] = 0
        return got
