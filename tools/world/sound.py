"""A scene -> its sound: every sounding voice, background noise, the tilt of the recording.

Loudness and pitch are computed at a control rate and interpolated; tones come from tables of one period.

S samples, C control points a clip.
"""

import functools

import numpy as np
import numpy.typing as npt

from shards_spec.sample import SAMPLE_RATE
from tools.world.classes import REGISTERS, RHYTHMS, TIMBRES
from tools.world.rhythm import Pulse, Voice, pulse_at
from tools.world.scene import SECONDS, Scene

Floats = npt.NDArray[np.float32]

_HOP = 16  # samples between control points: 1 ms
_SAMPLES = round(SECONDS * SAMPLE_RATE)
_CONTROLS = _SAMPLES // _HOP
_TABLE = 4096
_RANGE = 8.0  # semitones around a register's middle, both ways
_TOP = 7200.0  # Hz: no partial goes higher
_MOST_PARTIALS = 16
_BELL = ((1.0, 1.0, 1.2), (2.76, 0.6, 0.6), (5.4, 0.4, 0.3), (8.93, 0.25, 0.15))  # ratio, level, seconds to fade
_STRIKE_FADE = 0.22  # seconds in which a pluck fades
_NOISE = 1 << 19  # values of the stored noise
_LEVELS = (0.035, 0.25)  # root mean square of a voice: the quietest, the loudest
_NOISE_LEVELS = (0.0008, 0.02)  # ... of the background noise


def render_sound(scene: Scene) -> Floats:
    """The sound of a clip, float32 [S], mono, SAMPLE_RATE, in [-1, 1]. Equal scenes give equal values."""
    generator = np.random.default_rng(scene.sound_seed)
    level, colour = scene.noise
    quiet, loud = _NOISE_LEVELS
    mix = _noise("white", generator) * np.float32(1 - colour) + _noise("brown", generator) * np.float32(colour)
    mix *= np.float32(quiet * (loud / quiet) ** level)
    for actor in scene.sounding:
        mix += render_voice(actor.voice, generator)
    tilted = mix[1:] + np.float32(0.6 * scene.tilt) * mix[:-1]
    mix[1:] = tilted
    peak = max(float(mix.max()), -float(mix.min()))
    if peak > 0.98:
        mix *= np.float32(0.98 / peak)
    return mix


def render_voice(voice: Voice, generator: np.random.Generator) -> Floats:
    """One voice alone, float32 [S]. The generator gives noise to those that need it."""
    pulse = pulse_at(voice, np.arange(_CONTROLS + 1, dtype=np.float64) * (_HOP / SAMPLE_RATE))
    timbre = TIMBRES[voice.kind.timbre]
    middle = REGISTERS[voice.kind.register] * 2 ** (_RANGE * (2 * voice.pitch - 1) / 12)
    frequency = middle * 2 ** (pulse.semitones / 12)  # [C + 1]
    loudness = pulse.loudness
    if timbre == "pluck" and RHYTHMS[voice.kind.rhythm] != "siren":
        loudness = loudness * (0.15 + 0.85 * np.exp(-pulse.age / _STRIKE_FADE))
    sound = _tone(timbre, voice, pulse, frequency, generator)
    sound *= _interpolated(loudness)
    quiet, loud = _LEVELS
    # Not np.dot: its order of adding depends on the number of threads.
    energy = float(np.square(sound).sum(dtype=np.float64))
    power = energy / max(1, _HOP * int(np.count_nonzero(loudness > 0.05)))
    sound *= np.float32(quiet * (loud / quiet) ** voice.loudness / max(power, 1e-12) ** 0.5)
    return sound


def _tone(
    timbre: str, voice: Voice, pulse: Pulse, frequency: npt.NDArray[np.float64], generator: np.random.Generator
) -> Floats:
    """The voice at full loudness throughout, float32 [S]."""
    partials = int(min(_MOST_PARTIALS, max(1, _TOP // frequency.max())))
    formant = round(1 + 5 * voice.kind.formant)  # the partial that is emphasised
    if timbre == "bell":
        sound = np.zeros(_SAMPLES, np.float32)
        for ratio, level, fade in _BELL:
            if ratio * frequency.max() < _TOP:
                fading = level * (0.1 + 0.9 * np.exp(-pulse.age / fade))
                sound += _periods("sine", 1, 0, _phase(frequency * ratio)) * _interpolated(fading)
        return sound
    phase = _phase(frequency)
    if timbre == "hiss":
        band = _noise("band", generator)
        return band * _periods("sine", 1, 0, _phase(frequency * (1 + formant / 2)))
    if timbre == "whistle":
        breath = _noise("band", generator)
        breath *= np.float32(0.25)
        breath += np.float32(1)
        return breath * _periods("sine", 1, 0, phase)
    if timbre == "growl":
        rough = _periods("sine", 1, 0, _phase(np.full(_CONTROLS + 1, 26.0 + 24 * voice.kind.formant)))
        return _periods("saw", partials, formant, phase) * (np.float32(0.55) + np.float32(0.45) * rough)
    if timbre == "reed":
        return _periods("odd", partials, formant, phase)
    # Brass opens, a pluck closes after each strike: two tables, blended.
    dull, bright = ("sine", "saw") if timbre == "brass" else ("soft", "saw")
    seconds = 0.12 if timbre == "brass" else 0.09
    fading = np.exp(-pulse.age / seconds)
    share = _interpolated(1 - fading if timbre == "brass" else fading)
    low = _periods(dull, partials, 0, phase)
    return low + share * (_periods(bright, partials, formant, phase) - low)


def _phase(frequency: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Index into a table of one period at each sample, int32 [S], of frequencies at the control points, [C + 1]."""
    steps = frequency[:-1] * (_HOP / SAMPLE_RATE)  # periods from one control point to the next
    begins = np.concatenate([[0.0], np.cumsum(steps[:-1])]) % 1
    index = np.multiply.outer(steps.astype(np.float32), _ramp())
    index += begins.astype(np.float32)[:, None]
    index *= np.float32(_TABLE)
    whole = index.astype(np.int32).ravel()
    whole &= _TABLE - 1
    return whole


def _interpolated(values: npt.NDArray[np.float64]) -> Floats:
    """float32 [S] of values at the control points, [C + 1]."""
    low = values[:-1].astype(np.float32)
    rise = np.diff(values).astype(np.float32)
    dense = np.multiply.outer(rise, _ramp())
    dense += low[:, None]
    return dense.ravel()


@functools.cache
def _ramp() -> Floats:
    return (np.arange(_HOP) / _HOP).astype(np.float32)


def _periods(kind: str, partials: int, formant: int, index: npt.NDArray[np.int32]) -> Floats:
    return _table(kind, partials, formant).take(index)


@functools.lru_cache(maxsize=512)
def _table(kind: str, partials: int, formant: int) -> Floats:
    """One period, float32 [_TABLE]: a sum of `partials` harmonics, of which those near `formant` are emphasised."""
    time = np.arange(_TABLE) / _TABLE
    number = np.arange(1, (1 if kind == "sine" else partials) + 1)
    level = 1 / number ** {"sine": 1.0, "saw": 0.9, "odd": 0.8, "soft": 2.2}[kind]
    if kind == "odd":
        level = np.where(number % 2, level, 0.04 * level)
    if formant:
        level = level * (1 + 2.5 * np.exp(-(((number - formant) / 1.2) ** 2)))
    # Phases that spread the harmonics over the period: the sum has no sharp peak.
    phases = np.pi * number * (number - 1) / len(number)
    period = np.sin(2 * np.pi * np.outer(time, number) + phases) @ level
    return (period / np.sqrt(np.mean(period**2))).astype(np.float32)


def _noise(kind: str, generator: np.random.Generator) -> Floats:
    """float32 [S] of the stored noise, from a random place on."""
    first = int(generator.integers(_NOISE - _SAMPLES))
    return _stored_noise(kind)[first : first + _SAMPLES].copy()


@functools.cache
def _stored_noise(kind: str) -> Floats:
    """float32 [_NOISE], root mean square 1: white; brown, falling by 6 dB an octave; band, up to 150 Hz."""
    generator = np.random.default_rng(_NOISE)
    spectrum = np.fft.rfft(generator.standard_normal(_NOISE))
    hertz = np.fft.rfftfreq(_NOISE, 1 / SAMPLE_RATE)
    if kind == "brown":
        spectrum /= np.maximum(hertz, 40)
    elif kind == "band":
        spectrum *= np.exp(-((hertz / 150) ** 2))
    noise = np.fft.irfft(spectrum, _NOISE)
    return (noise / noise.std()).astype(np.float32)
