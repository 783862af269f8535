"""Which samples have next to no sound, told from their fbanks alone: datasets of any age can be asked.

    silent        every value of the fbank is the floor, log(float32's epsilon): digital silence, or less than -115 dB
    near-silent   no value is above NEAR_SILENCE: a tone of 1 kHz below -57 dBFS, white noise below -67 dBFS (RMS)
    short         less than SHORT_SECONDS of sound, however loud

They are samples like any other, and score in a way of their own: equal sounds have equal embeddings, so that silent
ones are first in many a retrieval list.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards_spec.sample import FBANK_DTYPE, FBANK_MELS, FBANK_SHIFT_MS, FBANK_WINDOW_MS, decode_fbank

Kind = Literal["silent", "near-silent"]

FLOOR = float(FBANK_DTYPE.type(np.log(np.finfo(np.float32).eps)))  # as stored: -15.9453125
NEAR_SILENCE = -6.0  # of the loudest value; natural recordings of quiet rooms reach about -5
SHORT_SECONDS = 1.0
WARN_SHARE = 0.03  # of the samples of a dataset


def rows_of(seconds: float) -> int:
    """fbank rows of so much sound: one for every whole window of 25 ms, every 10 ms."""
    return max(0, 1 + (round(1000 * seconds) - FBANK_WINDOW_MS) // FBANK_SHIFT_MS)


def loudest(payload: bytes | memoryview, valid_frames: int) -> float:
    """The greatest value in the valid rows of an fbank member: column `fbank_max` of the shard tables."""
    return float(decode_fbank(payload)[:valid_frames].max())


def kind_of(fbank_max: float) -> Kind | None:
    """What an fbank with this greatest value is; None for one with sound."""
    if fbank_max <= FLOOR:
        return "silent"
    return "near-silent" if fbank_max <= NEAR_SILENCE else None


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """How many samples have next to no sound. A sample may be short and silent too.

    Attributes:
        near_silent: None where the tables, of an earlier version, do not say.
    """

    silent: int = 0
    near_silent: int | None = 0
    short: int = 0

    def __add__(self, other: "Quiet") -> "Quiet":
        known = self.near_silent is not None and other.near_silent is not None
        near = (self.near_silent or 0) + (other.near_silent or 0) if known else None
        return Quiet(silent=self.silent + other.silent, near_silent=near, short=self.short + other.short)

    def parts(self) -> list[str]:
        """What there is, for people: `3 silent`, `2 near-silent`, `1 shorter than 1 s`."""
        counts = {
            "silent": self.silent,
            "near-silent": self.near_silent,
            f"shorter than {SHORT_SECONDS:g} s": self.short,
        }
        return [f"{count:,} {name}" for name, count in counts.items() if count]

    def warning(self, samples: int) -> str | None:
        """A line where they are more than WARN_SHARE of a dataset's samples, None otherwise."""
        count = max(self.silent + (self.near_silent or 0), self.short)
        if count <= WARN_SHARE * samples:
            return None
        return (
            f"{100 * count / samples:.1f}% of {samples:,} samples have next to no sound ({', '.join(self.parts())}):"
            " they look alike to a model; make-shards --skip-silent and --min-seconds leave them out"
        )


def count_quiet(ok: pa.Table) -> Quiet:
    """Counts the samples of a shard table, given its rows of status `ok`."""
    silent, near_silent, short = (int(found.sum()) for found in _kinds(ok))
    return Quiet(silent=silent, near_silent=near_silent if _says_all(ok) else None, short=short)


def is_quiet(ok: pa.Table) -> npt.NDArray[np.bool_]:
    """Which of these rows, as `count_quiet` has them, it counts; bool [rows]."""
    silent, near_silent, short = _kinds(ok)
    return silent | near_silent | short


def _says_all(ok: pa.Table) -> bool:
    return "fbank_max" in ok.column_names and not ok["fbank_max"].null_count


def _kinds(ok: pa.Table) -> tuple[npt.NDArray[np.bool_], ...]:
    """Which rows are silent, near-silent (as far as their table says) and short."""
    valid = _numbers(ok, "valid_frames")
    silent = _numbers(ok, "fbank_sum") == valid * FBANK_MELS * FLOOR
    near_silent = np.zeros(len(ok), bool)
    if "fbank_max" in ok.column_names:
        near_silent = (_numbers(ok, "fbank_max") <= NEAR_SILENCE) & ~silent
    return silent, near_silent, valid < rows_of(SHORT_SECONDS)


def _numbers(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """float64; NaN, which is no number's equal, for null."""
    return table[column].to_numpy().astype(np.float64)
