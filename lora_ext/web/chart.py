"""The numbers of a run as inline SVG: losses by step, and the learning rates of a plan. Colours come from style.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lora_ext.web.form_values import short_number

_WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 26, 12, 30
_MOST_DOTS = 500
_MOST_CURVES = 6

Point = tuple[int, float]
"""(step, loss)."""


@dataclass(frozen=True)
class Measurement:
    """The loss of held-out pictures after `step` steps, at the end of or within `epoch`; `best` of all so far."""

    step: int
    epoch: int
    loss: float
    best: bool


@dataclass(frozen=True)
class _Axes:
    """Where steps from 0 to `last_step` and values from 0 to `top` lie in a picture of `height` pixels."""

    last_step: int
    top: float
    height: int

    def x(self, step: int) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self.last_step, 1)

    def y(self, value: float) -> float:
        return round(_TOP + (self.height - _TOP - _BOTTOM) * (1 - min(value, self.top) / self.top), 1)

    def line(self, points: Sequence[Point]) -> str:
        """The points as a path's data."""
        return "M" + "L".join(f"{self.x(step)} {self.y(value)}" for step, value in thin_out(points, _MOST_DOTS))


def loss_chart(
    points: Sequence[Point],
    total_steps: int,
    bands: Mapping[str, Sequence[Point]] | None = None,
    measurements: Sequence[Measurement] = (),
) -> str:
    """The chart as one <svg> element: a dot for each step, a smoothed line, one for each band of timesteps, and marks
    for measurements of held-out pictures. What is not finite is left out.
    """
    finite = _finite(points)
    measured = [each for each in measurements if math.isfinite(each.loss)]
    if not finite:
        return _frame(230, "loss", _words("The loss of each step appears here."))
    top = max(loss_ceiling([loss for _, loss in finite]), *(1.05 * each.loss for each in measured), 0.0)
    axes = _Axes(max(total_steps, finite[-1][0], 2), top, 230)
    dots = "".join(f"M{axes.x(step)} {axes.y(loss)}h0" for step, loss in thin_out(finite, _MOST_DOTS))
    return _frame(
        axes.height,
        "loss",
        _rules(axes, lambda value, digits: f"{value:.{digits}f}"),
        f'<path class="lw-chart-dots" d="{dots}"/>',
        *_band_lines(axes, bands or {}),
        f'<path class="lw-chart-line" d="{axes.line(smoothed(finite))}"/>' if len(finite) > 1 else "",
        *_marks(axes, measured),
    )


def rate_chart(curves: Mapping[str, Sequence[float]], every: int = 1) -> str:
    """The learning rates of a plan by their labels, one value for each `every` steps; equal ones are one line.

    One <svg> element, or nothing where there is nothing to learn at.
    """
    shown = {
        label: [(number * every, rate) for number, rate in enumerate(rates)] for label, rates in curves.items() if rates
    }
    highest = max((rate for points in shown.values() for _, rate in points if math.isfinite(rate)), default=0.0)
    if not shown or highest <= 0:
        return ""
    last = max(points[-1][0] for points in shown.values())
    axes = _Axes(max(last, 1), highest * 1.02, 120)
    labels: dict[str, list[str]] = {}
    for label, points in shown.items():
        labels.setdefault(axes.line(_finite(points)), []).append(label)
    kept = list(labels.items())[:_MOST_CURVES]
    lines = [f'<path class="lw-chart-line lw-curve-{number}" d="{line}"/>' for number, (line, _) in enumerate(kept)]
    words = [
        f'<text class="lw-chart-label lw-curve-{number}" x="{_WIDTH - _RIGHT - 6}" y="{_TOP + 14 + 15 * number}">'
        f"{escape(', '.join(map(part_words, names)))}</text>"
        for number, (_, names) in enumerate(kept)
    ]
    return _frame(
        axes.height, "learning rate", _rules(axes, lambda value, _: short_number(float(f"{value:.3g}"))), *lines, *words
    )


def part_words(label: str) -> str:
    """The label of a learning rate as people say it."""
    return label.replace("unet", "U-Net").replace("text_encoder", "text encoder")


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _band_lines(axes: _Axes, bands: Mapping[str, Sequence[Point]]) -> list[str]:
    """A smoothed line for each band that has two losses or more; their labels stand at the top, right."""
    parts = []
    for number, (band, points) in enumerate(bands.items()):
        finite = _finite(points)
        if len(finite) > 1:
            parts.append(
                f'<g class="lw-chart-band lw-band-{number}"><path d="{axes.line(smoothed(finite))}"/>'
                f'<text x="{_WIDTH - _RIGHT - 6}" y="{_TOP + 12 + 14 * number}">t {escape(band)}</text></g>'
            )
    return parts


def _marks(axes: _Axes, measured: Sequence[Measurement]) -> list[str]:
    """A line through the measurements, a mark for each, and the epoch of the best one."""
    if not measured:
        return []
    line = axes.line([(each.step, each.loss) for each in measured])
    marks = "".join(f"M{axes.x(each.step)} {axes.y(each.loss)}h0" for each in measured)
    best = next((each for each in reversed(measured) if each.best), measured[0])
    x, y = axes.x(best.step), axes.y(best.loss)
    return [
        f'<path class="lw-chart-validation" d="{line}"/><path class="lw-chart-marks" d="{marks}"/>',
        f'<circle class="lw-chart-best" cx="{x}" cy="{y}" r="6"/>',
        f'<text class="lw-chart-best" x="{x}" y="{y - 10}">epoch {best.epoch}</text>',
    ]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average over about a twentieth of the run, free of the bias of its start."""
    keep = 1 - 1 / max(4.0, len(points) / 20)
    average, weight = 0.0, 0.0
    line = []
    for step, loss in points:
        average = keep * average + (1 - keep) * loss
        weight = keep * weight + (1 - keep)
        line.append((step, average / weight))
    return line


def thin_out(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` of the points at equal distances, the last one among them."""
    stride = -(-len(points) // most)
    return [*points[:-1:stride], points[-1]]


def loss_ceiling(losses: Sequence[float]) -> float:
    """The top of the chart: a round number above all but the rarest losses."""
    ordered = sorted(losses)
    high = max(ordered[min(len(ordered) - 1, int(len(ordered) * 0.985))], 1e-6) * 1.08
    unit = _tick_distance(high)
    return math.ceil(high / unit) * unit


def _tick_distance(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that three to six of them make up the span."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) < 6.01)


def _rules(axes: _Axes, shown: Callable[[float, int], str]) -> str:
    """Lines at round values with the words that `shown` gives for value and decimal places, and round steps below."""
    unit = _tick_distance(axes.top)
    digits = max(0, -math.floor(math.log10(unit)))
    parts = []
    for index in range(int(axes.top / unit + 1e-9) + 1):
        y = axes.y(index * unit)
        parts.append(f'<path class="lw-chart-rule" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="lw-chart-y" x="{_LEFT - 8}" y="{y + 4}">{shown(index * unit, digits)}</text>')
    step_unit = max(1, round(_tick_distance(axes.last_step)))
    for step in range(0, axes.last_step + 1, step_unit):
        parts.append(f'<text class="lw-chart-x" x="{axes.x(step)}" y="{axes.height - 9}">{step}</text>')
    return "".join(parts)


def _words(text: str) -> str:
    return f'<text class="lw-chart-empty" x="50%" y="50%">{text}</text>'


def _frame(height: int, what: str, *parts: str) -> str:
    return (
        f'<svg class="lw-chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{what} of each step">'
        f"{''.join(parts)}</svg>"
    )
