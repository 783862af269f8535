"""Waveform -> log-mel filterbank: Kaldi's definition with AST's settings, in numpy, its tables prepared once.

Equal to `torchaudio.compliance.kaldi.fbank(htk_compat=True, sample_frequency=16000, use_energy=False,
window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10)` up to float32 round-off, several times as fast.

Its last bits depend on the number of BLAS threads, and on the kind of CPU: samples are made with one thread.

The Fourier transform is done as two matrix products, for many windows at once: numpy's own takes five times as long.

S samples, T frames, W samples a window, M mel bins.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clip_error import ClipError
from shards_spec.sample import (
    FBANK_DTYPE,
    FBANK_FRAMES,
    FBANK_MELS,
    FBANK_SHAPE,
    FBANK_SHIFT_MS,
    FBANK_WINDOW_MS,
    SAMPLE_RATE,
)

WINDOW = SAMPLE_RATE * FBANK_WINDOW_MS // 1000  # samples
SHIFT = SAMPLE_RATE * FBANK_SHIFT_MS // 1000  # samples
_FFT = 512  # the next power of two, Kaldi's round_to_power_of_two
_INNER, _OUTER = 32, 16  # _FFT as a product: see _dft_matrices
_KEPT = _INNER // 2 + 1  # frequencies of a real inner transform
_ROWS = WINDOW // _OUTER  # what the zeros after the window leave of _INNER
_CHUNK = 256  # windows at a time: all arrays stay in the second-level cache
_BLOCK = 80  # divides WINDOW and SHIFT: window sums are sums of block sums
_PREEMPHASIS = 0.97  # Kaldi's default
_MEL_GROUPS = 4
_LOW_HZ = 20.0  # Kaldi's default
_FLOOR = np.finfo(np.float32).eps  # Kaldi takes log(max(energy, epsilon))

_Array = npt.NDArray[np.float32]


def fbank(waveform: _Array) -> tuple[npt.NDArray[np.float16], int]:
    """The fbank of a clip as it is stored.

    Args:
        waveform: float32 [S], mono, SAMPLE_RATE, in [-1, 1]; see `audio.check_samples`. Its mean is subtracted here.

    Returns:
        float16 [FBANK_FRAMES, FBANK_MELS] log-mel, zero rows at the end, and the number of rows before them:
        1 + (S - 400) // 160, at most FBANK_FRAMES.

    Raises:
        ClipError: `too_short`, fewer samples than one window of 25 ms.
    """
    if len(waveform) < WINDOW:
        raise ClipError("too_short", f"{len(waveform)} samples of audio, one fbank window needs {WINDOW}")
    # The mean is that of the whole waveform, also where rows are cut off. In float64: no summation order shows.
    centred = waveform - np.float32(waveform.mean(dtype=np.float64))
    rows = log_mel(centred[: WINDOW + (FBANK_FRAMES - 1) * SHIFT])
    stored = np.zeros(FBANK_SHAPE, FBANK_DTYPE)
    stored[: len(rows)] = rows
    return stored, len(rows)


def log_mel(waveform: _Array, *, num_mel_bins: int = FBANK_MELS) -> _Array:
    """Kaldi's fbank of float32 [S], S >= WINDOW: float32 [T, M], T = 1 + (S - 400) // 160 (snip_edges).

    Kaldi removes the mean m of each window, then replaces x[i] by x[i] - 0.97 x[i-1]. Both are linear, so one
    pass over the whole waveform does the second and 0.03 m remains to be subtracted. Sample 0 of a window, where
    Kaldi has no x[i-1], is special in neither: the Hanning window is zero there.
    """
    count = 1 + (len(waveform) - WINDOW) // SHIFT
    waveform = waveform[: WINDOW + (count - 1) * SHIFT]
    sums = waveform.reshape(-1, _BLOCK).sum(1)
    window_sums = np.lib.stride_tricks.sliding_window_view(sums, WINDOW // _BLOCK)[:: SHIFT // _BLOCK].sum(1)  # [T]
    offsets = window_sums * np.float32((1 - _PREEMPHASIS) / WINDOW)

    # Sample n of window t is columns[n % SHIFT, t + n // SHIFT]: windows that lie in columns need no gathering.
    emphasised = np.zeros((count + WINDOW // SHIFT) * SHIFT, np.float32)
    given = emphasised[1 : len(waveform)]
    np.multiply(waveform[:-1], np.float32(-_PREEMPHASIS), out=given)
    given += waveform[1:]
    columns = np.ascontiguousarray(emphasised.reshape(-1, SHIFT).T)

    energies = np.empty((count, num_mel_bins), np.float32)
    for first in range(0, count, _CHUNK):
        chunk = slice(first, min(first + _CHUNK, count))
        power = _power(columns[:, first : chunk.stop + WINDOW // SHIFT], offsets[chunk])
        for mels, bins, weights in _mel_groups(num_mel_bins):
            np.matmul(power[bins].T, weights, out=energies[chunk, mels])
    np.maximum(energies, _FLOOR, out=energies)
    return np.log(energies, out=energies)


def _power(columns: _Array, offsets: _Array) -> _Array:
    """Power spectra of T windows, float32 [_FFT / 2, T].

    Args:
        columns: float32 [SHIFT, T + WINDOW // SHIFT]: sample n of window t stands at [n % SHIFT, t + n // SHIFT].
        offsets: float32 [T], subtracted from every sample of a window.
    """
    count = len(offsets)
    windows = np.empty((WINDOW, count), np.float32)
    for first in range(0, WINDOW, SHIFT):
        part = windows[first : first + SHIFT]
        np.subtract(columns[: len(part), first // SHIFT : first // SHIFT + count], offsets, out=part)
    windows *= _window()
    tables = _dft_matrices()
    inner = tables.inner @ windows.reshape(_ROWS, _OUTER * count)
    squares = tables.outer @ inner.reshape(_KEPT, 2 * _OUTER, count)  # [k1, (re, im) x k2, T]
    np.square(squares, out=squares)
    real, imaginary = squares[:, :_OUTER], squares[:, _OUTER:]
    # Bin k1 + _INNER k2 is as strong as bin _FFT minus it, which has the other half of k1.
    half = _OUTER // 2
    power = np.empty((half, _INNER, count), np.float32)
    np.add(real[:, :half], imaginary[:, :half], out=power[:, :_KEPT].swapaxes(0, 1))
    mirrored = power[::-1, : _KEPT - 1 : -1].swapaxes(0, 1)  # k1 from 1 on
    np.add(real[1:-1, half:], imaginary[1:-1, half:], out=mirrored)
    return power.reshape(_FFT // 2, count)


class _DftMatrices(NamedTuple):
    """See `_dft_matrices`."""

    inner: _Array  # [_KEPT x (re, im), _ROWS]
    outer: _Array  # [_KEPT, (re, im) x _OUTER, (re, im) x _OUTER]


@functools.cache
def _dft_matrices() -> _DftMatrices:
    """A Fourier transform of _FFT samples as two matrix products (Cooley and Tukey, 1965).

    With n = _OUTER n1 + n2 and k = k1 + _INNER k2 the exponent n k / _FFT is n1 k1 / _INNER + n2 k / _FFT and whole
    numbers: the inner product sums over n1, the outer one, of which there is one for each k1, over n2.
    """
    n1, n2, k1, k2 = np.arange(_ROWS), np.arange(_OUTER), np.arange(_KEPT), np.arange(_OUTER)
    angles = 2 * np.pi / _INNER * np.outer(k1, n1)
    inner = np.stack([np.cos(angles), -np.sin(angles)], 1).reshape(2 * _KEPT, _ROWS)
    angles = 2 * np.pi / _FFT * n2 * (k1[:, None, None] + _INNER * k2[:, None])  # [k1, k2, n2]
    real, imaginary = np.cos(angles), -np.sin(angles)
    outer = np.concatenate([np.concatenate([real, -imaginary], 2), np.concatenate([imaginary, real], 2)], 1)
    return _DftMatrices(inner.astype(np.float32), outer.astype(np.float32))


@functools.cache
def _window() -> _Array:
    """float32 [W, 1]: symmetric Hanning, as Kaldi's."""
    return np.hanning(WINDOW).astype(np.float32)[:, np.newaxis]


@functools.cache
def _mel_groups(num_mel_bins: int) -> tuple[tuple[slice, slice, _Array], ...]:
    """Kaldi's triangles, in groups of neighbours: mel bins, the FFT bins that they touch, weights [bins, mels].

    A triangle touches few FFT bins, so four small products do the work of one of four times the size.
    """
    triangles = mel_triangles(num_mel_bins)
    groups = []
    for mels in np.array_split(np.arange(num_mel_bins), _MEL_GROUPS):
        rows = triangles[mels[0] : mels[-1] + 1]
        touched = np.flatnonzero(rows.any(0))
        bins = slice(int(touched[0]), int(touched[-1]) + 1)
        groups.append((slice(int(mels[0]), int(mels[-1]) + 1), bins, np.ascontiguousarray(rows[:, bins].T)))
    return tuple(groups)


def mel_triangles(num_mel_bins: int) -> _Array:
    """float32 [M, _FFT / 2]: triangles of equal width in mel, from 20 Hz to half the rate; in float32, as Kaldi has."""
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (_LOW_HZ, SAMPLE_RATE / 2))
    width = (high - low) / (num_mel_bins + 1)
    number = np.arange(num_mel_bins, dtype=np.float32)[:, np.newaxis]
    left, centre, right = (np.float32(low) + (number + np.float32(i)) * np.float32(width) for i in range(3))
    hertz = np.float32(SAMPLE_RATE / _FFT) * np.arange(_FFT // 2, dtype=np.float32)
    mel = np.float32(1127.0) * np.log(np.float32(1.0) + hertz / np.float32(700.0))
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    triangles: _Array = np.maximum(np.float32(0), np.minimum(rising, falling))
    return triangles
