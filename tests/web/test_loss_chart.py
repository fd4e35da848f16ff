"""The chart as a pure function: literal coordinates, a smooth line without the bias of its start, few points."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.web.chart import loss_ceiling, loss_chart, smoothed, thin_out


def test_empty() -> None:
    assert "The loss of each step appears here." in loss_chart([], 100)
    assert "The loss of each step appears here." in loss_chart([(1, math.nan)], 100)


def test_dots_lie_where_they_belong() -> None:
    chart = loss_chart([(0, 0.0), (50, 0.5), (100, 1.0)], 100)
    dots = re.search(r'lw-chart-dots" d="([^"]+)"', chart)
    assert dots is not None
    # 52 … 734 px are steps 0 … 100; 200 … 12 px are losses 0 … 1.2
    assert dots.group(1) == "M52.0 200.0h0M393.0 121.7h0M734.0 43.3h0"
    labels = re.findall(r'lw-chart-y"[^>]*>([^<]+)<', chart)
    assert labels == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]


def test_a_single_rare_peak_does_not_flatten_the_rest() -> None:
    losses = [0.1] * 999 + [50.0]
    assert loss_ceiling(losses) < 0.2


@pytest.mark.parametrize("constant", [1e-5, 0.08, 1.0, 300.0])
def test_a_constant_stays_constant(constant: float) -> None:
    line = smoothed([(step, constant) for step in range(1, 60)])
    assert all(math.isclose(loss, constant) for _, loss in line)


@given(st.lists(st.floats(0, 1e6) | st.just(math.nan), max_size=60), st.integers(0, 10_000))
def test_every_run_gives_wellformed_svg(losses: list[float], total: int) -> None:
    chart = loss_chart(list(enumerate(losses, start=1)), total)
    ElementTree.fromstring(chart)
    assert "nan" not in chart
    assert "inf" not in chart


def test_thinning_keeps_the_last_point() -> None:
    points = [(step, 0.0) for step in range(1, 10_001)]
    thinned = thin_out(points, 500)
    assert len(thinned) <= 501
    assert (thinned[0], thinned[-1]) == ((1, 0.0), (10_000, 0.0))
    assert len(loss_chart(points, 10_000)) < 30_000
