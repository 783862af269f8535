"""DeepAVFusion's sound: the log-mel of 3 s, mel first, [B, 128, 192], not normalised; silence is -7.

"We apply an STFT using approximately 50ms windows with a hop size of 15ms, resulting in an input tensor of size
128x196" (Sec. 4.1). In the code windows are 800 samples, hops 250, and of the 193 frames of 3 s the last is dropped.

B samples, S sound samples at 16 kHz, F frequencies, M mel bands, T frames.
"""

import math

import torch
from torch import Tensor, nn

from training.methods.shared.blocks import take, without_autocast

RATE = 16000
SECONDS = 3.0
SAMPLES = int(RATE * SECONDS)
WINDOW, HOP = 800, 250
MELS, FRAMES = 128, 192
_FLOOR = 1e-7
# Our fbank: Kaldi's windows and hops, its bands from 20 Hz, its pre-emphasis; the band whose filter is empty.
_FBANK_WINDOW, _FBANK_HOP, _FBANK_LOWEST, _PREEMPHASIS, _EMPTY = 400, 160, 20.0, 0.97, 3
_FBANK_ROWS = 998  # of 10 s
_FBANK_FLOOR = -15.93  # what is no power at all is log(eps) in it, -15.94
_FBANK_POWER = 2 * 800 / 512  # the longer Hann window has twice the power, and more frequencies to a band


class LogMel(nn.Module):
    """Waveforms to log-mel spectrograms, and back through a mask. In float32 or above, whatever autocast says."""

    window: Tensor  # [800], Hann, periodic
    filters: Tensor  # [401, 128]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=True), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms [B, 48000] in [-1, 1] -> [B, 128, 192], log10(power + 1e-7)."""
        with without_autocast(waveform):
            power = self._stft(waveform)[..., :FRAMES].abs().square()  # [B, 401, 192]
            return (self.filters.T.to(power.dtype) @ power + _FLOOR).log10()

    def masked(self, mix: Tensor, logits: Tensor) -> Tensor:
        """The sound that a mask of mel bands takes out of a mix: [B, 48000], of [B, 48000] and logits [B, 128, 192].

        A frequency's share is the sum of its bands' shares, weighed by their filters. The last frame is silent.
        """
        with without_autocast(mix):
            share = self.filters.to(mix.dtype) @ logits.to(mix.dtype).sigmoid()  # [B, 401, 192]
            share = nn.functional.pad(share, (0, 1))
            return torch.istft(self._stft(mix) * share, WINDOW, HOP, window=self.window.to(mix.dtype))

    def _stft(self, waveform: Tensor) -> Tensor:
        window = self.window.to(waveform.dtype)
        return torch.stft(waveform, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)


def mel_filters() -> Tensor:
    """Triangles [401, 128] between 130 points at equal distances on HTK's mel scale from 0 to 8000 Hz, all 1 high."""
    highest = RATE / 2
    points = _hertz(torch.linspace(0, _mel(highest), MELS + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, highest, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    left, centre, right = points[:-2], points[1:-1], points[2:]
    rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def three_seconds(waveform: Tensor, heard: Tensor | None = None) -> Tensor:
    """The middle 3 s of waveforms [B, S], [B, 48000]; shorter ones go on as their mirror image.

    Args:
        heard: samples of each waveform that are the clip's [B]; all of them without.
    """
    if heard is None:
        heard = torch.full((len(waveform),), waveform.shape[1], device=waveform.device)
    samples = heard[:, None].long().clamp(min=1)
    start = (samples - SAMPLES).clamp(min=0) // 2
    place = (start + torch.arange(SAMPLES, device=waveform.device)) % (2 * samples)
    return waveform.gather(1, torch.minimum(place, 2 * samples - 1 - place))


def from_fbank(fbank: Tensor, valid_frames: Tensor | None = None, place: Tensor | None = None) -> Tensor:
    """About the same spectrogram [B, 128, 192] from fbanks [B, 1024, 128] as stored: natural logarithm, time first.

    Undone are the logarithm and the pre-emphasis; power, bands and frames are brought to the other's, between the
    nearest ones. On nine clips correlation was 0.87 to 0.98, the root mean square difference 0.39 to 0.70, and that of
    the lowest eight bands, of which the pre-emphasis leaves little, 0.7 to 1.7; on a nearly silent one 0.52, 0.73, 0.9.

    Args:
        valid_frames: rows before padding [B]; those of 10 s without.
        place: where the middle of the clip lies in the 3 s, [B] from 0 (at their end) to 1 (at their beginning), as far
            as the clip reaches; in their middle without.
    """
    with without_autocast(fbank):
        power = fbank.exp().where(fbank > _FBANK_FLOOR, 0) * _FBANK_POWER / _preemphasis(fbank)
        bands = torch.arange(MELS, device=fbank.device)
        neighbours = (power[..., _EMPTY - 1] + power[..., _EMPTY + 1]) / 2
        power = torch.where(bands == _EMPTY, neighbours.unsqueeze(-1), power)
        bands_wanted = ((_log_mel_centres(fbank) - _fbank_centres(fbank)[0]) / _fbank_step()).clamp(0, MELS - 1)
        power = _between(power.transpose(1, 2), bands_wanted.expand(len(fbank), -1))  # [B, M, rows]
        power = _between(power.transpose(1, 2), _rows_wanted(fbank, valid_frames, place))  # [B, T, M]
        return (power + _FLOOR).log10().transpose(1, 2)


def _rows_wanted(fbank: Tensor, valid_frames: Tensor | None, place: Tensor | None) -> Tensor:
    """Where the 192 frames of 3 s lie among the rows of fbanks, as fractions of a row, [B, T].

    A clip of less than 3 s goes on as its mirror image.
    """
    if valid_frames is None:
        valid_frames = torch.full((len(fbank),), _FBANK_ROWS, device=fbank.device)
    rows = valid_frames[:, None].clamp(min=1).to(fbank.dtype)
    samples = (rows - 1) * _FBANK_HOP + _FBANK_WINDOW
    more = (samples - SAMPLES).clamp(min=0)
    shift = 0.0 if place is None else (place[:, None].to(fbank.dtype) - 0.5) * more.clamp(max=SAMPLES)
    start = more / 2 + shift
    centres = (start + HOP * torch.arange(FRAMES, device=fbank.device)) % (2 * samples)
    centres = torch.minimum(centres, 2 * samples - centres)
    return torch.minimum(((centres - _FBANK_WINDOW / 2) / _FBANK_HOP).clamp(min=0), rows - 1)


def _between(x: Tensor, places: Tensor) -> Tensor:
    """x [B, N, C] at places [B, T] between its N, linearly -> [B, T, C]."""
    below = places.floor().long()
    above = (below + 1).clamp(max=x.shape[1] - 1)
    return torch.lerp(take(x, below), take(x, above), (places - below).unsqueeze(-1))


def _preemphasis(fbank: Tensor) -> Tensor:
    """|1 - 0.97 exp(-i w)|^2 at the centre of each band of our fbank, [M]."""
    angle = 2 * math.pi / RATE * _hertz(_fbank_centres(fbank))
    return 1 - 2 * _PREEMPHASIS * angle.cos() + _PREEMPHASIS**2


def _fbank_step() -> float:
    return (_mel(RATE / 2) - _mel(_FBANK_LOWEST)) / (MELS + 1)


def _fbank_centres(like: Tensor) -> Tensor:
    """Centres of our fbank's bands in mel, [M]."""
    bands = torch.arange(1, MELS + 1, device=like.device, dtype=like.dtype)
    return _mel(_FBANK_LOWEST) + _fbank_step() * bands


def _log_mel_centres(like: Tensor) -> Tensor:
    """Centres of this spectrogram's bands in mel, [M]."""
    return _mel(RATE / 2) / (MELS + 1) * torch.arange(1, MELS + 1, device=like.device, dtype=like.dtype)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
