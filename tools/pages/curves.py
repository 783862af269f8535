"""A curve over training steps as one inline SVG: axes, round ticks, the last value marked.

However long the run, a curve has at most a few hundred points: steps that fall into the same column are drawn as
their mean inside the band from their least to their greatest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 320, 150  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 8, 20  # margins; tick labels stand in the left and the lower one
_COLUMNS = 240

Unit = Literal["number", "share"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis: from values to 0 .. 1."""

    low: float
    high: float
    is_log: bool

    def place(self, value: float) -> float:
        """Where a value stands on the axis."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to six round values, at most, on the axis."""
        return _log_ticks(self.low, self.high) if self.is_log else _linear_ticks(self.low, self.high)


def curve(
    steps: Sequence[int],
    values: Sequence[float],
    *,
    name: str,
    log_x: bool,
    log_y: bool = False,
    from_zero: bool = False,
    unit: Unit = "number",
) -> str:
    """The SVG of finite `values` at ascending positive `steps`.

    Args:
        name: what the curve shows, for screen readers; escaped by the caller.
        log_y: a logarithmic axis where the values (all above 0) span a wide range.
        from_zero: the lower axis stands at 0.
        unit: `share` writes ticks in percent.
    """
    x = step_scale(steps, is_log=log_x)
    y = _value_scale(values, log_y=log_y, from_zero=from_zero)
    kind = "log" if log_x else "linear"
    said = f"{name}: {number(values[0], unit)} at step {steps[0]}, {number(values[-1], unit)} at step {steps[-1]}"
    return (
        f'<svg class="curve {kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f"{_axes(x, y, unit)}{_drawn(x, y, steps, values)}</svg>"
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
    low, high = steps[0], steps[-1]
    if is_log:
        return Scale(low=low if low < high else low / 2, high=high if low < high else 2 * high, is_log=True)
    return Scale(low=0, high=high, is_log=False)


def _value_scale(values: Sequence[float], *, log_y: bool, from_zero: bool) -> Scale:
    low, high = min(values), max(values)
    if log_y and low > 0 and high / low > 30:
        return Scale(low=low / 1.1, high=high * 1.1, is_log=True)
    if from_zero:
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


def _drawn(x: Scale, y: Scale, steps: Sequence[int], values: Sequence[float]) -> str:
    columns: dict[int, list[tuple[float, float]]] = {}
    for step, value in zip(steps, values, strict=True):
        place = x.place(step)
        columns.setdefault(int(place * _COLUMNS), []).append((place, y.place(value)))
    upper, line, lower = [], [], []
    for points in columns.values():
        at = _x(sum(p for p, _ in points) / len(points))
        heights = [height for _, height in points]
        upper.append(f"{at},{_y(max(heights))}")
        line.append(f"{at},{_y(sum(heights) / len(heights))}")
        lower.append(f"{at},{_y(min(heights))}")
    band = f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>' if len(line) < len(steps) else ""
    end = f'<circle class="end" cx="{_x(x.place(steps[-1]))}" cy="{_y(y.place(values[-1]))}" r="2.5"/>'
    return f'{band}<polyline class="line" points="{" ".join(line)}"/>{end}'
