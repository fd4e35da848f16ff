"""The comparison with the built-in Lora: what its networks adapt, and which figures are told to be too small."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.against_builtin import beyond_limits, table
from benchmarks.applying.subjects import KINDS, adapted, fill
from lora_ext.checkpoint.module_names import unet_module_names
from lora_ext.checkpoint.weight_views import weight_view
from lora_ext.host.standalone.unet import UNet


@pytest.mark.parametrize(("kind", "lora", "locon"), [("sd1", 192, 278), ("sd2", 192, 278), ("sdxl", 722, 788)])
def test_its_networks_are_of_the_sets_of_sd_scripts(kind: str, lora: int, locon: int) -> None:
    plan = KINDS[kind]
    with torch.device("meta"):
        unet = UNet(plan.unet)
    views = {key: weight_view(unet, path) for key, path in unet_module_names(unet, plan.architecture).items()}
    assert [len(adapted(views, with_convolutions)) for with_convolutions in (False, True)] == [lora, locon]


def test_weights_are_filled_without_gradients() -> None:
    module = nn.Linear(3, 5).to_empty(device="cpu")
    fill(module)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert 0 < module.weight.abs().max() < 0.2


FIGURES: dict[str, Any] = {
    "touched_gb": 1.0,
    "difference": 1e-7,
    "ours": {"weight changed": 0.5, "another of five": 1.0, "a sixth added": 2.0, "extra memory / touched": 1.0},
    "built-in": {"weight changed": 3.0, "another of five": 3.9, "a sixth added": 8.0, "extra memory / touched": 2.5},
}


def test_what_is_beyond_the_limits() -> None:
    assert beyond_limits(FIGURES, 4.0) == ["another of five"]
    more = {**FIGURES, "ours": {**FIGURES["ours"], "extra memory / touched": 1.06}}
    assert beyond_limits(more, 3.0) == ["extra memory"]


def test_the_table() -> None:
    lines = [line.split() for line in table(FIGURES).splitlines()]
    assert lines[1] == ["weight", "changed", "0.500", "s", "3.000", "s", "6.0"]
    assert lines[4] == ["extra", "memory", "/", "touched", "1.000", "2.500"]
