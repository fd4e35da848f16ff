"""The algorithm "full" trains a whole checkpoint: merged into the file that it was trained on, it is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.config.train_config import TrainConfig
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work
from lora_ext.protocols import Control, Events, GenerateRequest
from lora_ext.training.trainer import Trainer


@pytest.mark.slow
def test_trained_and_merged(
    checkpoint: Checkpoint, small_config: Callable[..., TrainConfig], tiny_checkpoint_path: Path, tmp_path: Path
) -> None:
    config = small_config(
        network_algorithm="full", network_preset="full", train_norm=True, save_precision="float", learning_rate=1e-3
    )
    home = tmp_path / "home"
    trained = Trainer(checkpoint, config, home / "models" / "Lora", Events(), Control()).run().files[-1]
    merged = tmp_path / "merged.safetensors"
    tool = tool_named("merge-checkpoint")
    values = {"checkpoint": str(tiny_checkpoint_path), "network": str(trained), "out": str(merged)}
    tool.run(make_settings(tool, values), Work())
    file, changes = open_checkpoint_file(tiny_checkpoint_path), load_file(trained)
    before, after = load_file(tiny_checkpoint_path), load_file(merged)
    expected = dict(before)
    for key, view in file.weights.items():
        for parameter, names in ((view, ("diff", "w_norm")), (view.bias, ("diff_b", "b_norm"))):
            change = next((changes[f"{key}.{name}"] for name in names if f"{key}.{name}" in changes), None)
            if parameter is not None and change is not None:
                name = file.tensor_names[parameter.parameter]
                expected[name] = before[name] + change.reshape(before[name].shape)
    assert {name for name in before if not torch.equal(after[name], expected[name])} == set()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert {name.rpartition(".")[2] for name in moved} == {"weight", "bias"} and len(moved) > 400
    request = GenerateRequest("a cat", width=64, height=64, steps=2, seed=3)
    tagged, bare = (
        StandaloneHost(tiny_checkpoint_path, home, device="cpu", dtype="float32").generate(each)[0].image
        for each in (replace(request, prompt="a cat <lora:cat:1>"), request)
    )
    alone = StandaloneHost(merged, tmp_path / "other", device="cpu", dtype="float32").generate(request)[0].image
    assert alone.tobytes() == tagged.tobytes() != bare.tobytes()
