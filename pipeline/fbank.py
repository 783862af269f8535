"""Waveform -> log-mel filterbank: Kaldi's definition with AST's settings, its tables prepared once.

Equal to `torchaudio.compliance.kaldi.fbank(htk_compat=True, sample_frequency=16000, use_energy=False,
window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10)` up to float32 round-off, several times as fast.

S samples, T frames, W samples a window, F FFT bins, M mel bins.
"""

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks

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
_BLOCK = 80  # divides WINDOW and SHIFT: window sums are sums of block sums
_PREEMPHASIS = 0.97  # Kaldi's default
_MEL_GROUPS = 4
_LOW_HZ = 20.0  # Kaldi's default
_FLOOR = torch.finfo(torch.float32).eps  # Kaldi takes log(max(energy, epsilon))


def fbank(waveform: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float16], int]:
    """The fbank of a clip as it is stored.

    Args:
        waveform: float32 [S], mono, SAMPLE_RATE, in [-1, 1]. Its mean is subtracted here.

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
    rows = log_mel(torch.from_numpy(centred[: WINDOW + (FBANK_FRAMES - 1) * SHIFT]))
    stored = np.zeros(FBANK_SHAPE, FBANK_DTYPE)
    stored[: len(rows)] = rows.half().numpy()
    return stored, len(rows)


def log_mel(waveform: Tensor, *, num_mel_bins: int = FBANK_MELS) -> Tensor:
    """Kaldi's fbank of float32 [S], S >= WINDOW: float32 [T, M], T = 1 + (S - 400) // 160 (snip_edges).

    Kaldi removes the mean m of each window, then replaces x[i] by x[i] - 0.97 x[i-1]. Both are linear, so one
    pass over the whole waveform does the second and 0.03 m remains to be subtracted. Sample 0 of a window, where
    Kaldi has no x[i-1], is special in neither: the Hanning window is zero there.
    """
    count = 1 + (len(waveform) - WINDOW) // SHIFT
    waveform = waveform[: WINDOW + (count - 1) * SHIFT]
    emphasised = torch.empty_like(waveform)
    torch.sub(waveform[1:], waveform[:-1], alpha=_PREEMPHASIS, out=emphasised[1:])
    emphasised[0] = 0
    sums = waveform.view(-1, _BLOCK).sum(1).unfold(0, WINDOW // _BLOCK, SHIFT // _BLOCK).sum(1)  # [T]
    offsets = sums.mul_((1 - _PREEMPHASIS) / WINDOW).unsqueeze(1)  # [T, 1]

    padded = torch.zeros(count, _FFT)
    windows = padded[:, :WINDOW]
    torch.sub(emphasised.unfold(0, WINDOW, SHIFT), offsets, out=windows)
    windows.mul_(_window())
    squares = torch.view_as_real(torch.fft.rfft(padded)).view(count, -1).square_()  # [T, 2 F]: re^2, im^2, re^2, ...
    energies = torch.empty(count, num_mel_bins)
    for mels, bins, weights in _mel_groups(num_mel_bins):
        torch.mm(squares[:, bins], weights, out=energies[:, mels])
    return energies.clamp_min_(_FLOOR).log_()


@functools.cache
def _window() -> Tensor:
    """float32 [W]: symmetric Hanning, as Kaldi's."""
    return torch.hann_window(WINDOW, periodic=False)


@functools.cache
def _mel_groups(num_mel_bins: int) -> tuple[tuple[slice, slice, Tensor], ...]:
    """Kaldi's triangles, in groups of neighbours: columns of the result, columns of `squares`, weights between them.

    A triangle touches few FFT bins, so four small products do the work of one of four times the size. Each
    weight stands twice, for the squares of the real and of the imaginary part: the product adds them up.
    """
    triangles, _ = get_mel_banks(num_mel_bins, _FFT, float(SAMPLE_RATE), _LOW_HZ, 0.0, 100.0, -500.0, 1.0)  # [M, F]
    groups = []
    for mels in np.array_split(np.arange(num_mel_bins), _MEL_GROUPS):
        rows = triangles[mels[0] : mels[-1] + 1]
        touched = rows.any(0).nonzero().flatten()
        first, end = int(touched[0]), int(touched[-1]) + 1
        weights = rows[:, first:end].T.repeat_interleave(2, 0).contiguous()
        groups.append((slice(int(mels[0]), int(mels[-1]) + 1), slice(2 * first, 2 * end), weights))
    return tuple(groups)
