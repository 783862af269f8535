"""Curves over training steps as one inline SVG: axes, round ticks, the last values marked. Of one run or of several.

    curves([Series(name="A", steps=[10, 20], values=[2.0, 1.5], colour="run-0"), ...], name="Loss", log_x=False)

However long the run, a curve has at most a few hundred points: steps that fall into the same column are drawn as
their mean inside the band from their least to their greatest. Colours are classes of web_page.py's style; with more
runs than colours, the later ones are dashed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 320, 150  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 8, 20  # margins; tick labels stand in the left and the lower one
_COLUMNS = 200

Unit = Literal["number", "share"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve: finite `values` at ascending positive `steps`, at least one.

    Attributes:
        name: whose curve it is.
        colour: a class of the style: both, image, audio, or `run_colour(i)`.
        spread: what the values vary by, over seeds for instance: a band on both sides. None: no band.
    """

    steps: Sequence[int]
    values: Sequence[float]
    name: str = ""
    colour: str = "both"
    spread: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis: from values to 0 .. 1."""

    low: float
    high: float
    is_log: bool

    def place(self, value: float) -> float:
        """Where a value stands on the axis; the edge for one outside."""
        if self.is_log:
            value = max(value, self.low)
            return min(1.0, math.log(value / self.low) / math.log(self.high / self.low))
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> list[float]:
        """Three to six round values, at most, on the axis."""
        return _log_ticks(self.low, self.high) if self.is_log else _linear_ticks(self.low, self.high)


def curves(
    series: Sequence[Series],
    *,
    name: str,
    log_x: bool,
    log_y: bool = False,
    from_zero: bool = False,
    unit: Unit = "number",
) -> str:
    """The SVG of one or more curves on common axes.

    Args:
        name: what the curves show, for screen readers; escaped here.
        log_y: a logarithmic axis where the values (all above 0) span a wide range.
        from_zero: the lower axis stands at 0.
        unit: `share` writes ticks in percent.
    """
    x = step_scale([s.steps[0] for s in series] + [s.steps[-1] for s in series], is_log=log_x)
    y = _value_scale([v for s in series for v in _extent(s)], log_y=log_y, from_zero=from_zero)
    kind = "log" if log_x else "linear"
    said = "; ".join(
        f"{s.name + ' ' if s.name else ''}{number(s.values[0], unit)} at step {s.steps[0]},"
        f" {number(s.values[-1], unit)} at step {s.steps[-1]}"
        for s in series
    )
    drawn = "".join(f'<g class="{s.colour}">{_drawn(x, y, s)}</g>' for s in series)
    return (
        f'<svg class="curve {kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{name}: {said}")}">'
        f"{_axes(x, y, unit)}{drawn}</svg>"
    )


def number(value: float, unit: Unit = "number") -> str:
    """A value for people: four digits at most, 1.2e-5 for the very small, percent for shares."""
    if unit == "share":
        return f"{100 * value:.3g}%"
    if value and (abs(value) < 2e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def step_scale(steps: Sequence[int], *, is_log: bool) -> Scale:
    """The axis of the steps: logarithmic, or from 0."""
    low, high = min(steps), max(steps)
    if is_log:
        return Scale(low=low if low < high else low / 2, high=high if low < high else 2 * high, is_log=True)
    return Scale(low=0, high=high, is_log=False)


def _extent(series: Series) -> list[float]:
    """The values, and what the band around them reaches."""
    if series.spread is None:
        return list(series.values)
    pairs = list(zip(series.values, series.spread, strict=True))
    return [v + s for v, s in pairs] + [v - s for v, s in pairs]


def _value_scale(values: Sequence[float], *, log_y: bool, from_zero: bool) -> Scale:
    low, high = min(values), max(values)
    if log_y and low > 0 and high / low > 30:
        return Scale(low=low / 1.1, high=high * 1.1, is_log=True)
    if from_zero and low >= 0:
        return Scale(low=0, high=1.08 * high if high > 0 else 1, is_log=False)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1
    return Scale(low=low - margin, high=high + margin, is_log=False)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.7 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [m * 10.0**p for p in powers for m in multiples if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            return found[:: -(-len(found) // 6)]
    return _linear_ticks(low, high)


def _x(place: float) -> str:
    return f"{_LEFT + place * (WIDTH - _LEFT - _RIGHT):.1f}"


def _y(place: float) -> str:
    return f"{HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM):.1f}"


def _axes(x: Scale, y: Scale, unit: Unit) -> str:
    parts = []
    for tick in y.ticks():
        at = _y(y.place(tick))
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{at}" dy=".32em" text-anchor="end">{_tick(tick, unit)}</text>'
        )
    base = HEIGHT - _BOTTOM
    parts.append(f'<path class="axis" d="M{_LEFT} {base}H{WIDTH - _RIGHT}"/>')
    for tick in x.ticks():
        place = x.place(tick)
        anchor = "end" if place > 0.96 else "middle"
        parts.append(f'<path class="axis" d="M{_x(place)} {base}v3"/>')
        parts.append(f'<text class="tick" x="{_x(place)}" y="{base + 14}" text-anchor="{anchor}">{_step(tick)}</text>')
    return "".join(parts)


def _tick(value: float, unit: Unit) -> str:
    return number(0.0 if abs(value) < 1e-12 else value, unit)


def _step(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _drawn(x: Scale, y: Scale, series: Series) -> str:
    spread = series.spread or [0.0] * len(series.steps)
    columns: dict[int, list[tuple[float, float, float, float]]] = {}
    for step, value, around in zip(series.steps, series.values, spread, strict=True):
        place = x.place(step)
        heights = y.place(value - around), y.place(value), y.place(value + around)
        columns.setdefault(int(place * _COLUMNS), []).append((place, *heights))
    upper, line, lower = [], [], []
    for points in columns.values():
        at = _x(sum(point[0] for point in points) / len(points))
        upper.append(f"{at},{_y(max(point[3] for point in points))}")
        line.append(f"{at},{_y(sum(point[2] for point in points) / len(points))}")
        lower.append(f"{at},{_y(min(point[1] for point in points))}")
    has_band = series.spread is not None or len(line) < len(series.steps)
    band = f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>' if has_band else ""
    end = f'<circle class="end" cx="{_x(x.place(series.steps[-1]))}" cy="{_y(y.place(series.values[-1]))}" r="2.5"/>'
    return f'{band}<polyline class="line" points="{" ".join(line)}"/>{end}'
