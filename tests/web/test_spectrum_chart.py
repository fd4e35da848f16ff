"""Charts of singular values: one for each block, curves on a logarithmic scale, the kept rank marked."""

from __future__ import annotations

import re

import pytest
import torch

from lora_ext.merge.work import ModuleReport
from lora_ext.web.spectrum_chart import block_label, spectrum_charts

MID = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("key", "label"),
    [
        (MID, "MID"),
        ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q", "IN02"),
        ("lora_unet_up_blocks_3_attentions_2_proj_out", "OUT11"),
        ("lora_unet_input_blocks_4_1_proj_in", "IN04"),
        ("lora_unet_output_blocks_8_0_in_layers_2", "OUT08"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text encoder"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text encoder 2"),
        ("lora_unet_conv_out", "other"),
        ("something", "other"),
    ],
)
def test_blocks_by_key(key: str, label: str) -> None:
    assert block_label(key) == label


def test_nothing_without_singular_values() -> None:
    assert spectrum_charts([]) == spectrum_charts([ModuleReport(MID, 4, 2, 0.5)]) == ""


def test_a_curve_falls_a_decade_a_quarter_of_the_chart() -> None:
    values = torch.tensor([1000.0, 100.0, 10.0, 1.0, 0.1, 0.0001])  # the last one lies below the chart
    chart = spectrum_charts([ModuleReport(MID, 6, 2, 0.987, values)])
    (line,) = re.findall(r'class="lw-spectrum-line" d="M([^"]+)"', chart)
    points = [tuple(map(float, point.split())) for point in line.split("L")]
    assert points == [(4, 4), (36, 23), (68, 42), (100, 61), (132, 80)]
    assert 'class="lw-spectrum-mark" d="M52.0 0V84"' in chart  # between the second value and the third
    assert "<b>MID</b> rank 6 → 2 · 98.7 % kept" in chart


def test_a_block_tells_its_ranges_and_a_zero_layer_has_no_curve() -> None:
    modules = [
        ModuleReport(MID, 8, 2, 0.9, torch.tensor([1.0, 0.5])),
        ModuleReport(MID.replace("in", "out"), 8, 4, 0.8, torch.zeros(2)),
        ModuleReport("lora_te_text_model_encoder_layers_0_mlp_fc1", 8, None, None, torch.tensor([1.0, 0.5])),
    ]
    charts = re.findall(r"<figure>.*?</figure>", spectrum_charts(modules))
    assert len(charts) == 2 and "text encoder" in charts[0] and "rank 8<" in charts[0]
    assert "rank 8 → 2–4 · 85.0 % kept" in charts[1] and charts[1].count("lw-spectrum-line") == 1
