"""From decoded samples to the waveform of a segment: mono, at its time, 16 kHz. Both decoders use it.

S samples.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.clip_error import ClipError
from shards_spec.sample import SAMPLE_RATE

# Timestamps are rounded (Matroska: to 1 ms) and clocks drift: only a larger jump is a gap, as in FFmpeg's aresample.
GAP = 0.1  # seconds

# Times full scale. Codecs that compute in floating point overshoot, perhaps by 4; 60 dB over full scale is damage.
LOUDEST = 1000.0

_BANK_OUTPUTS = 128  # samples computed together, at least
_BANK_GROUPS = 4
_LONGEST_PERIOD = 640  # samples at SAMPLE_RATE: that of 11,025 Hz
_ZERO_CROSSINGS = 6  # of the filter, on each side: torchaudio's lowpass_filter_width
_ROLLOFF = 0.99  # of the lower one of both Nyquist frequencies, torchaudio's default
_NEGLIGIBLE = 1e-12  # of a filter whose sum is 1: where its window is zero up to round-off


# Decoded sample formats: numpy type, value of silence, value of full scale. A "p" at the end: one plane a channel.
_SAMPLE_FORMATS: dict[str, tuple[type, int, int]] = {
    "u8": (np.uint8, 1 << 7, 1 << 7),
    "s16": (np.int16, 0, 1 << 15),
    "s32": (np.int32, 0, 1 << 31),
    "s64": (np.int64, 0, 1 << 63),
    "flt": (np.float32, 0, 1),
    "dbl": (np.float64, 0, 1),
}
_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class AudioRun:
    """Samples without a gap."""

    time: float  # of the first sample, seconds on the file's timeline
    samples: npt.NDArray[np.float32]  # [S], mono
    rate: int  # Hz


def channel_sum(frame: av.AudioFrame) -> tuple[npt.NDArray[np.float32], int, float]:
    """The sum of a frame's channels, float32 [samples], their number, and what makes it their mean in [-1, 1].

    Raises:
        ClipError: `decode_error`, a sample format that no decoder of sound in video gives.
    """
    name, count = frame.format.name, frame.samples
    planes: Sequence[Any] = frame.planes  # buffers, which PyAV's stubs do not say
    if name == "fltp" and len(planes) == 2:  # AAC, Opus, Vorbis, MP3: 400 frames a clip, so worth a line of its own
        return np.add(np.frombuffer(planes[0], _FLOAT, count), np.frombuffer(planes[1], _FLOAT, count)), 2, 0.5
    kind = name.removesuffix("p")
    if kind not in _SAMPLE_FORMATS:
        raise ClipError("decode_error", f"samples of format {name}")
    dtype, silence, full_scale = _SAMPLE_FORMATS[kind]
    if kind != name:
        channels: npt.NDArray[Any] = np.stack([np.frombuffer(plane, dtype, count) for plane in planes])
    else:
        number = frame.layout.nb_channels
        channels = np.frombuffer(planes[0], dtype, count * number).reshape(count, number).T
    with np.errstate(over="ignore"):  # infinite then, which `check_samples` finds
        total = channels.sum(0, dtype=np.float32) - np.float32(silence * len(channels))
    return total, len(channels), 1 / (full_scale * len(channels))


def place(runs: Sequence[AudioRun], begin: float, end: float) -> npt.NDArray[np.float32]:
    """The waveform of the segment, float32 [S] at SAMPLE_RATE: every run at its time, zeros before and between.

    It ends with the audio or with the segment, whichever is first: nothing outside the segment is used, not even
    by the resampling filter.
    """
    length = round((end - begin) * SAMPLE_RATE)
    waveform = np.zeros(length, np.float32)
    filled = 0
    for run in runs:
        first = max(0, round((begin - run.time) * run.rate))
        last = max(0, round((end - run.time) * run.rate))
        samples = resample(run.samples[first:last], run.rate)
        offset = max(0, round((run.time - begin) * SAMPLE_RATE))
        samples = samples[: max(0, length - offset)]
        waveform[offset : offset + len(samples)] = samples
        filled = max(filled, offset + len(samples)) if len(samples) else filled
    return waveform[:filled]


def check_samples(waveform: npt.NDArray[np.float32]) -> None:
    """Whether a waveform is one: a single damaged sample would make the fbank, and the mean of a dataset, infinite.

    Raises:
        ClipError: `decode_error`, samples that are no numbers, or beyond any sound.
    """
    if not np.isfinite(waveform).all():
        raise ClipError("decode_error", "the sound is damaged: it has samples that are no numbers")
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak > LOUDEST:
        told = f"the sound is damaged: a sample is {peak:.3g} times full scale, what sounds is at most {LOUDEST:g}"
        raise ClipError("decode_error", told)


def resample(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """float32 [S] at `rate` Hz -> float32 [ceil(S * SAMPLE_RATE / rate)].

    What torchaudio.functional.resample computes with its defaults, in a third of the time: the filter is prepared
    once for each rate, and the zeros that make up most of it are left out.
    """
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    bank = _filter_bank(rate)
    length = math.ceil(len(samples) * SAMPLE_RATE / rate)
    count = math.ceil(length / bank.outputs)
    padded = np.zeros((count - 1) * bank.step + bank.taps, np.float32)
    padded[bank.before : bank.before + len(samples)] = samples[: len(padded) - bank.before]
    windows = np.lib.stride_tricks.sliding_window_view(padded, bank.taps)[:: bank.step]  # [count, taps]
    resampled = np.empty((count, bank.outputs), np.float32)
    for outputs, taps, weights in bank.groups:
        np.matmul(windows[:, taps], weights, out=resampled[:, outputs])
    return resampled.reshape(-1)[:length]


@dataclass(frozen=True)
class _FilterBank:
    """One matrix that turns a window of `taps` input samples into `outputs` output samples, in its nonzero parts."""

    before: int  # zeros before the first sample
    step: int  # input samples between windows
    taps: int
    outputs: int
    groups: tuple[tuple[slice, slice, npt.NDArray[np.float32]], ...]  # outputs, taps, weights between them


@functools.lru_cache(maxsize=16)
def _filter_bank(rate: int) -> _FilterBank:
    """The filters of one rate, repeated until there are _BANK_OUTPUTS of them."""
    # Exact for every usual rate. A rate like 44,101 Hz has a filter of gigabytes: its ratio is taken to 1e-5.
    ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(_LONGEST_PERIOD)
    period = ratio.numerator
    filters, width = _sinc_filters(period, ratio.denominator)
    repeats = math.ceil(_BANK_OUTPUTS / len(filters))
    matrix = np.zeros((repeats * len(filters), filters.shape[1] + (repeats - 1) * period), np.float32)
    for i in range(repeats):
        matrix[i * len(filters) : (i + 1) * len(filters), i * period : i * period + filters.shape[1]] = filters
    groups = []
    for outputs in np.array_split(np.arange(len(matrix)), _BANK_GROUPS):
        first, last = int(outputs[0]), int(outputs[-1]) + 1
        touched = np.flatnonzero((np.abs(matrix[first:last]) > _NEGLIGIBLE).any(0))
        taps = slice(int(touched[0]), int(touched[-1]) + 1)
        groups.append((slice(first, last), taps, np.ascontiguousarray(matrix[first:last, taps].T)))
    return _FilterBank(width, repeats * period, matrix.shape[1], len(matrix), tuple(groups))


def _sinc_filters(period: int, outputs: int) -> tuple[npt.NDArray[np.float32], int]:
    """The windowed sinc filters that turn `period` samples into `outputs`, as torchaudio's resample computes them.

    In float32, step by step as there: computed in float64 they would give samples that differ by up to 1e-5.

    Returns:
        [outputs, 2 width + period] weights, and `width`, the zeros before the first sample.
    """
    cutoff = _ROLLOFF * min(period, outputs)  # twice the highest frequency that passes, in cycles a period
    width = math.ceil(_ZERO_CROSSINGS * period / cutoff)
    inputs = np.arange(-width, width + period, dtype=np.float32) / np.float32(period)  # times, in periods
    times = inputs - (np.arange(outputs, dtype=np.float32) / np.float32(outputs))[:, np.newaxis]
    times = np.clip(times * np.float32(cutoff), -_ZERO_CROSSINGS, _ZERO_CROSSINGS)  # in zero crossings
    angles = times * np.float32(math.pi)
    hann = np.square(np.cos(angles / np.float32(_ZERO_CROSSINGS) / np.float32(2)))
    sinc = np.divide(np.sin(angles), angles, out=np.ones_like(angles), where=angles != 0)
    filters: npt.NDArray[np.float32] = sinc * (hann * np.float32(cutoff / period))
    return filters, width
