"""The evenly spaced frames that `make-shards --frames N` stores beside the middle one."""

import zlib
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg

from shards_spec.errors import DamagedSampleError
from shards_spec.sample import FRAME_SIZE, extra_frame_member, member_column
from shards_spec.tables import read_table
from training.evaluation.metadata import open_shard
from training.stream.index import DatasetIndex
from training.stream.order import Numbers

_FIELDS = ("offset", "length", "crc32")

# B samples, F frames of each, S pixels a side.


class FrameReader:
    """Reads all frames of samples. `count` is F, 0 where a dataset stores the middle one alone; `times` says where."""

    def __init__(self, index: DatasetIndex) -> None:
        """
        Raises:
            DamagedSampleError, FetchError: a shard's table cannot be read.
        """
        self._index = index
        self._shard = -1
        self._places: list[dict[str, Any]] = []
        self.count = min(self._frames_of(shard) for shard in self._first_shards())
        times = {dataset.recipe.get("frame_times", "middles") for dataset in index.datasets}
        self.times = f"at the {' or '.join(sorted(times))} of equal parts"  # as make-shards --frame-times says

    def read(self, numbers: Numbers) -> npt.NDArray[np.uint8]:
        """The frames of samples, uint8 [B, F, S, S, 3], in their order in time.

        Raises:
            DamagedSampleError: a frame's bytes are not what was written; names shard, key and offset.
            FetchError: a remote shard cannot be had.
        """
        frames = np.empty((len(numbers), self.count, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        for row, number in enumerate(numbers.tolist()):
            shard, place = self._index.locate(number)
            with self._held(shard):
                self._open_table(shard)
                self._read_sample(shard, self._places[place], frames[row])
        return frames

    def _read_sample(self, shard: int, place: dict[str, Any], into: npt.NDArray[np.uint8]) -> None:
        tar = self._index.tars[shard]
        try:
            with open_shard(tar) as file:
                for f in range(self.count):
                    offset, length, crc32 = (place[column] for column in _columns(f))
                    file.seek(offset)
                    payload = file.read(length)
                    where = f"{tar}: sample {place['key']}: its frame {f} at byte {offset}"
                    if zlib.crc32(payload) != crc32:
                        raise DamagedSampleError(
                            f"{where} has the crc32 {zlib.crc32(payload):08x}, on record is {crc32:08x}"
                        )
                    simplejpeg.decode_jpeg(payload, "RGB", buffer=into[f], strict=True)
        except ValueError as error:  # the bytes are as written, but no JPEG of the right size
            raise DamagedSampleError(f"{where}: {error}") from error

    def _open_table(self, shard: int) -> None:
        if shard != self._shard:
            columns = [column for f in range(self.count) for column in _columns(f)]
            table, _ = read_table(self._index.tars[shard].with_suffix(".parquet"), ["key", "status", *columns])
            self._places = table.filter(pa.compute.equal(table["status"], "ok")).to_pylist()
            self._shard = shard

    def _first_shards(self) -> list[int]:
        """The first shard of each dataset."""
        sizes = [len(dataset.shards) for dataset in self._index.datasets]
        return [sum(sizes[:i]) for i in range(len(sizes))]

    def _frames_of(self, shard: int) -> int:
        with self._held(shard):
            table, _ = read_table(self._index.tars[shard].with_suffix(".parquet"))
        names = set(table.column_names)
        return next(f for f in range(len(names) + 1) if not names.issuperset(_columns(f)))

    def _held(self, shard: int) -> Any:
        cache = self._index.cache
        return cache.holding([shard]) if cache is not None and shard in cache.shards else nullcontext()


def _columns(frame: int) -> list[str]:
    return [member_column(extra_frame_member(frame), field) for field in _FIELDS]
