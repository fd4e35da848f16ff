"""What training writes is healthy to the check, whatever part of the checkpoint had no say in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.config.train_config import TrainConfig
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.merge.check import check_file
from lora_ext.protocols import Control, Events
from lora_ext.training.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "values", "notes"),
    [
        ("sd1", {"clip_skip": 2}, ["clip skip"]),
        ("sd1", {"clip_skip": 2, "dora_wd": True, "rs_lora": True}, ["clip skip"]),
        ("sd1", {"network_algorithm": "lokr", "factor": 4, "conv_dim": 2, "conv_alpha": 1}, []),
        ("sdxl", {}, ["clip skip"]),
    ],
)
def test_a_trained_network_is_healthy(
    kind: str,
    values: dict[str, Any],
    notes: list[str],
    tiny_kind_path: Callable[[str], Path],
    small_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    path = tiny_kind_path(kind)
    checkpoint: Checkpoint = load_checkpoint(path, torch.device("cpu"), torch.float32).checkpoint
    config = small_config(**{"max_train_epochs": 1, "save_precision": "fp16", **values})
    network = Trainer(checkpoint, config, tmp_path, Events(), Control()).run().files[-1]
    result = check_file(network, open_checkpoint_file(path))
    assert (result.verdict, [finding.kind for finding in result.findings]) == ("healthy", notes)
    assert result.facts["hash"] == "matches the tensors"
