"""The chart as a pure function: literal coordinates, a smooth line without the bias of its start, few points."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.web.chart import Measurement, loss_ceiling, loss_chart, rate_chart, smoothed, thin_out


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


LOSSES = st.lists(st.floats(0, 1e6) | st.just(math.nan), max_size=60)


@given(LOSSES, st.integers(0, 10_000), LOSSES)
def test_every_run_gives_wellformed_svg(losses: list[float], total: int, others: list[float]) -> None:
    measured = [Measurement(step, step, loss, step == 1) for step, loss in enumerate(others, start=1)]
    chart = loss_chart(list(enumerate(losses, start=1)), total, {"0-250": list(enumerate(others))}, measured)
    ElementTree.fromstring(chart)
    assert "nan" not in chart
    assert "inf" not in chart


def test_thinning_keeps_the_last_point() -> None:
    points = [(step, 0.0) for step in range(1, 10_001)]
    thinned = thin_out(points, 500)
    assert len(thinned) <= 501
    assert (thinned[0], thinned[-1]) == ((1, 0.0), (10_000, 0.0))
    assert len(loss_chart(points, 10_000)) < 30_000


def test_bands_and_measurements_stand_in_the_chart() -> None:
    points = [(step, 0.5) for step in range(1, 101)]
    bands = {"0-250": [(1, 0.2), (100, 0.2)], "250-500": [(7, 0.3)], "500-750": [], "750-1000": [(2, 0.6), (3, 0.6)]}
    measured = [Measurement(50, 1, 0.4, True), Measurement(100, 2, 2.0, False)]
    chart = loss_chart(points, 100, bands, measured)
    assert re.findall(r'lw-band-(\d)"><path d="M', chart) == ["0", "3"]  # one loss alone makes no line
    assert re.findall(r">(t [^<]+|epoch [^<]+)<", chart) == ["t 0-250", "t 750-1000", "epoch 1"]
    assert 'lw-chart-marks" d="M393.0 ' in chart
    heights = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", chart)]
    assert min(heights) >= 12  # the measurement above all losses is inside


def test_curves_of_a_plan() -> None:
    assert rate_chart({}) == rate_chart({"unet": []}) == rate_chart({"unet": [0.0, 0.0]}) == ""
    chart = rate_chart({"unet": [0.0, 1e-4, 5e-5], "text_encoder": [0.0, 5e-5, 2.5e-5], "up": [0.0, 1e-4, 5e-5]})
    ElementTree.fromstring(chart)
    assert re.findall(r"lw-chart-label[^>]*>([^<]+)<", chart) == ["U-Net, up", "text encoder"]
    assert re.findall(r'lw-chart-y"[^>]*>([^<]+)<', chart) == ["0", "2e-5", "4e-5", "6e-5", "8e-5", "1e-4"]
    assert 'x="734.0" y="111">100<' in rate_chart({"unet": [1e-4] * 11}, every=10)
    assert re.findall(r'lw-curve-0" d="M52.0 90.0L393.0 13.5L734.0 51.8"', chart)
    assert "<b>" not in rate_chart({"<b>": [1.0, 2.0]})
    assert len(rate_chart({"unet": [1e-4] * 100_000})) < 30_000
