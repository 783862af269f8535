"""When an object sounds, and moves: one pulse that the ear hears and the eye sees.

A voice is silent until it starts; then its strikes follow the rhythm of its class. Everything is a closed function of
time, so that one frame can be drawn without those before it.

T times.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.world.classes import RHYTHMS, WorldClass

Floats = npt.NDArray[np.float64]

# Of each family: seconds of one period at the slowest and at the fastest tempo, and the strikes in it:
# when (share of the period), how long (the same), how high (semitones).
_Strike = tuple[float, float, float]
_PERIODS: dict[str, tuple[float, float]] = {
    "drone": (0.60, 0.25),
    "beat": (1.30, 0.70),
    "patter": (0.26, 0.15),
    "gallop": (1.20, 0.70),
    "trill": (0.34, 0.20),
    "siren": (2.60, 1.30),
    "burst": (2.20, 1.40),
}
_STRIKES: dict[str, tuple[_Strike, ...]] = {
    "drone": ((0.0, 1.0, 0.0),),
    "beat": ((0.0, 0.45, 0.0),),
    "patter": ((0.0, 0.5, 0.0),),
    "gallop": ((0.0, 0.4, 0.0), (0.5, 0.18, 0.0), (0.75, 0.18, 0.0)),
    "trill": ((0.0, 0.5, 0.0), (0.5, 0.5, 4.0)),
    "siren": ((0.0, 1.0, 0.0),),
    "burst": ((0.0, 0.08, 0.0), (0.11, 0.08, 3.0), (0.22, 0.08, 6.0), (0.33, 0.08, 9.0)),
}
_ATTACK, _RELEASE = 0.012, 0.03  # seconds
_SIREN_SEMITONES = 5.0
_KICK = 0.16  # seconds in which a movement fades after its strike
_TEMPO_SHARE = 0.5  # of a family's range of tempi: the rest is between its classes


@dataclass(frozen=True, kw_only=True)
class Voice:
    """What an object would sound like, whether it sounds or not. Shares between 0 and 1 where nothing else is said."""

    kind: WorldClass
    pitch: float  # within the range of its class; high is small to the eye
    tempo: float  # within the range of its class
    loudness: float  # loud is bright to the eye
    start: float  # seconds
    end: float

    @property
    def period(self) -> float:
        """Seconds of one round of the rhythm."""
        slowest, fastest = _PERIODS[RHYTHMS[self.kind.rhythm]]
        place = (1 - _TEMPO_SHARE) * self.kind.pace + _TEMPO_SHARE * self.tempo
        return slowest * (fastest / slowest) ** place


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A voice at some times: float64 [T] each."""

    loudness: Floats  # 0 to 1
    semitones: Floats  # above the voice's pitch
    age: Floats  # seconds since the last strike
    count: Floats  # strikes so far; 0 before the first, none after the voice's end
    drive: Floats  # how far the object is moved: 0 at rest, 1 at a strike; -1 to 1 where the rhythm swings


def pulse_at(voice: Voice, times: Floats) -> Pulse:
    """The voice at `times`, seconds, float64 [T]."""
    name, period = RHYTHMS[voice.kind.rhythm], voice.period
    strikes = _STRIKES[name]
    since = times - voice.start
    _, place, number = _struck(voice, since)
    rounds, _, last = _struck(voice, np.minimum(times, voice.end) - voice.start)
    begins, lengths, heights = (np.array(column) for column in zip(*strikes, strict=True))
    age = place - begins[number] * period
    left = lengths[number] * period - age
    semitones = heights[number]
    if name in ("drone", "siren"):
        swing = np.sin(2 * np.pi * place / period)
        loudness = 0.7 + 0.3 * swing if name == "drone" else np.full(len(times), 0.85)
        semitones = semitones if name == "drone" else _SIREN_SEMITONES * swing
        drive = swing
    else:
        loudness = np.clip(age / _ATTACK, 0, 1) * np.clip(left / _RELEASE + 1, 0, 1)
        drive = np.exp(-age / _KICK)
    sounds = np.clip(since / _ATTACK, 0, 1) * np.clip((voice.end - times) / _RELEASE, 0, 1)
    awake = (since >= 0) & (times < voice.end)
    return Pulse(
        loudness=loudness * sounds,
        semitones=semitones,
        age=age,
        count=np.where(since >= 0, rounds * len(strikes) + last + 1, 0),
        drive=np.where(awake, drive, 0.0),
    )


def _struck(voice: Voice, since: Floats) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Of times in seconds since the start, [T] each: the round, seconds into it, and the number of its last strike."""
    rounds, place = np.divmod(since, voice.period)
    number = np.zeros(len(since), np.int64)
    for begin, _, _ in _STRIKES[RHYTHMS[voice.kind.rhythm]][1:]:
        number += place >= begin * voice.period
    return rounds, place, number
