"""What is said of settings that do not go with the kind of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.train_config import make_config
from lora_ext.dataset.folders import DatasetScan, Subset, Terms
from lora_ext.dataset.options import run_sizing
from lora_ext.training.base_warnings import base_warnings


@pytest.mark.parametrize(
    ("architecture", "values", "expected"),
    [
        ("SD1", {"resolution": "512", "clip_skip": 2, "text_encoder_lr": 1e-5}, []),
        ("SD1", {"text_encoder_2_lr": 1e-5}, ["text_encoder_2_lr = 1e-05 has no effect: base is an SD1 checkpoint"]),
        ("SD1", {"text_encoder_2_lr": 1e-5, "network_train_unet_only": True}, []),  # said of the settings alone
        ("SD2", {"resolution": "512", "clip_skip": 2}, ["clip_skip = 2 counts from the layer that SD2 is made for"]),
        ("SDXL", {"resolution": "1024", "text_encoder_2_lr": 1e-5}, []),
        ("SDXL", {"resolution": "768"}, []),
        ("SDXL", {"resolution": "512,1024", "clip_skip": 2}, ["at 512×1024 pixels: SDXL is made", "clip_skip = 2 has"]),
    ],
)
def test_what_is_said(architecture: Architecture, values: dict[str, Any], expected: list[str]) -> None:
    schedule = NoiseSchedule.scaled_linear()
    base = Checkpoint(nn.Identity(), nn.Identity(), [], schedule, architecture, "epsilon", "base", None, "")
    config = make_config(values)
    scan = DatasetScan([Subset(Path("cat"), 1, "cat", terms=Terms(sizing=run_sizing(config)))])
    found = list(base_warnings(config, scan, base))
    assert len(found) == len(expected)
    assert all(words in text for words, text in zip(expected, found, strict=True))
