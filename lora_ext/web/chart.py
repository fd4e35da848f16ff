"""The loss of a run as inline SVG: a dot for each step, and a smoothed line. Colours come from style.css."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 760, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 26, 12, 30
_MOST_DOTS = 500

Point = tuple[int, float]
"""(step, loss)."""


def loss_chart(points: Sequence[Point], total_steps: int) -> str:
    """The chart as one <svg> element; steps without a finite loss are left out."""
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if not finite:
        return _frame('<text class="lw-chart-empty" x="50%" y="50%">The loss of each step appears here.</text>')
    last_step = max(total_steps, finite[-1][0], 2)
    top = loss_ceiling([loss for _, loss in finite])
    dots = "".join(f"M{_x(step, last_step)} {_y(loss, top)}h0" for step, loss in thin_out(finite, _MOST_DOTS))
    line = "L".join(f"{_x(step, last_step)} {_y(loss, top)}" for step, loss in thin_out(smoothed(finite), _MOST_DOTS))
    return _frame(
        _grid_lines(top, last_step),
        f'<path class="lw-chart-dots" d="{dots}"/>',
        f'<path class="lw-chart-line" d="M{line}"/>' if len(finite) > 1 else "",
    )


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


def _grid_lines(top: float, last_step: int) -> str:
    unit = _tick_distance(top)
    digits = max(0, -math.floor(math.log10(unit)))
    parts = []
    for index in range(round(top / unit) + 1):
        y = _y(index * unit, top)
        parts.append(f'<path class="lw-chart-rule" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="lw-chart-y" x="{_LEFT - 8}" y="{y + 4}">{index * unit:.{digits}f}</text>')
    step_unit = max(1, round(_tick_distance(last_step)))
    for step in range(0, last_step + 1, step_unit):
        parts.append(f'<text class="lw-chart-x" x="{_x(step, last_step)}" y="{_HEIGHT - 9}">{step}</text>')
    return "".join(parts)


def _x(step: int, last_step: int) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last_step, 1)


def _y(loss: float, top: float) -> float:
    return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(loss, top) / top), 1)


def _frame(*parts: str) -> str:
    return (
        f'<svg class="lw-chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss of each step">'
        f"{''.join(parts)}</svg>"
    )
