"""Whole runs on the tiny checkpoint with everything that acts on learning and on the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.networks.file import read_network
from lora_ext.protocols import Events, MessageLevel, StepReport, UserError
from lora_ext.training.trainer import Trainer


class Recorder(Events):
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.messages: list[tuple[MessageLevel, str]] = []

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def message(self, level: MessageLevel, text: str) -> None:
        self.messages.append((level, text))


EVERYTHING: dict[str, Any] = {
    "conv_dim": 2, "conv_alpha": 1, "block_dims": ",".join(["4"] * 24 + ["2"]), "network_dropout": 0.1,
    "rank_dropout": 0.2, "module_dropout": 0.1, "scale_weight_norms": 0.01, "ema_decay": 0.9,
    "block_lr": ",".join(["1"] * 13 + ["0.5"] * 11 + ["0"]), "loraplus_unet_lr_ratio": 4,
    "stop_text_encoder_training": 50, "lr_scheduler": "rex", "learning_rate": 1e-2, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.mark.slow
def test_everything_at_once(checkpoint: Checkpoint, small_config: Any, tmp_path: Path) -> None:
    events = Recorder()
    with torch.random.fork_rng():
        result = Trainer(checkpoint, small_config(**EVERYTHING), tmp_path / "out", events).run()
    labels = ["unet", "unet up", "unet x0.5", "unet x0.5 up", "text_encoder"]
    assert [list(report.learning_rates) for report in events.steps] == [labels] * result.steps
    last = result.steps // 2
    assert events.steps[last - 1].learning_rates["text_encoder"] > 0
    assert all(report.learning_rates["text_encoder"] == 0 for report in events.steps[last:])
    norms = [text for _, text in events.messages if "keys scaled" in text]
    assert len(norms) == 2 and all(re.match(r"Epoch \d: \d+ keys scaled, average norm", text) for text in norms)
    network = read_network(result.files[-1])
    assert network.tensors["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape[0] == 2
    assert not any(name.startswith("lora_unet_up_blocks_3_attentions_2") for name in network.tensors)
    assert network.metadata["ss_scale_weight_norms"] == "0.01"
    assert '"conv_dim": "2"' in network.metadata["ss_network_args"]
    assert '"mid_lr_weight": "1"' in network.metadata["ss_network_args"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"optimizer_type": "Prodigy", "learning_rate": 1.0, "optimizer_args": "d0=1e-3"},
        {"optimizer_type": "AdamWScheduleFree"},
        {"optimizer_type": "AdaFactor"},
        {"lr_scheduler": "torch.optim.lr_scheduler.StepLR", "lr_scheduler_args": "step_size=2 gamma=0.1"},
    ],
    ids=lambda values: next(iter(values.values())),
)
def test_a_run_with_another_optimizer_or_schedule(
    values: dict[str, Any], checkpoint: Checkpoint, small_config: Any, tmp_path: Path
) -> None:
    config = small_config(max_train_epochs=1, network_train_unet_only=True, **values)
    events = Recorder()
    result = Trainer(checkpoint, config, tmp_path / "out", events).run()
    tensors = read_network(result.files[-1]).tensors
    assert all(tensor.any() for name, tensor in tensors.items() if name.endswith("lora_up.weight"))
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    if "Prodigy" in values.values():
        assert all(set(report.learning_rates) == {"unet", "unet d*lr"} for report in events.steps)
        assert events.steps[-1].learning_rates["unet d*lr"] > 0


def test_what_is_wrong_is_found_before_any_work(checkpoint: Checkpoint, small_config: Any, tmp_path: Path) -> None:
    for values, words in [
        ({"optimizer_type": "Nowhere"}, "optimizer_type = 'Nowhere'"),
        ({"lr_scheduler": "nothing"}, "lr_scheduler = 'nothing'"),
        ({"block_dims": ",".join(["4"] * 23)}, "SD1 checkpoints take 25 numbers"),
        ({"block_lr": ",".join(["1"] * 23)}, "block_lr = .* has 23 numbers: SD1 checkpoints take 25"),
    ]:
        events = Recorder()
        with pytest.raises(UserError, match=words):
            Trainer(checkpoint, small_config(**values), tmp_path / "out", events).run()
        assert events.steps == []
