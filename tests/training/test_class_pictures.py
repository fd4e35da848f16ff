"""Class pictures in a run: drawn by the checkpoint as it is, before anything of the network is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import read_network
from lora_ext.protocols import Control, Events, GeneratedImage, GenerateRequest, Progress, UserError
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Painter:
    """Paints grey pictures, and looks whether the checkpoint is as it was handed over."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.asked: list[GenerateRequest] = []
        self._checkpoint = checkpoint

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        self.asked.append(request)
        modules = self._checkpoint.unet.modules()
        assert not any("forward" in module.__dict__ or module._forward_hooks for module in modules)
        return [GeneratedImage(Image.new("RGB", (request.width, request.height), "grey"), request.seed, "")]


@pytest.mark.slow
def test_a_run_draws_them_first(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(
        max_train_epochs=1, reg_data_dir=str(tmp_path / "reg"), class_prompt="an animal", num_class_images=2,
        prior_loss_weight=0.5,
    )  # fmt: skip
    painter = Painter(checkpoint)
    result = Trainer(checkpoint, config, tmp_path / "out", generator=painter).run()
    assert [(request.prompt, request.width) for request in painter.asked] == [("an animal", 64)] * 2
    assert result.steps == 6  # (2 + 6 square) and 4 wide ones, two at once
    metadata = read_network(result.files[-1]).metadata
    assert metadata["ss_num_reg_images"] == "2" and metadata["ss_num_train_images"] == "6"
    assert metadata["ss_reg_dataset_dirs"] == '{"reg": {"n_repeats": 1, "img_count": 2}}'
    assert metadata["ss_prior_loss_weight"] == "0.5"
    second = Trainer(checkpoint, config, tmp_path / "again", generator=painter).run()
    assert len(painter.asked) == 2 and second.losses == result.losses


def test_a_cancelled_run_keeps_what_is_drawn(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(reg_data_dir=str(tmp_path / "reg"), class_prompt="an animal", num_class_images=3)
    control = Control()

    class Cancelling(Events):
        def phase(self, name: str, done: int, total: int) -> None:
            if (name, done, total) == ("drawing class pictures", 1, 3):
                control.cancel()

    painter = Painter(checkpoint)
    result = Trainer(checkpoint, config, tmp_path / "out", Cancelling(), control, generator=painter).run()
    assert (result.steps, result.cancelled, result.files) == (0, True, [])
    assert [path.name for path in (tmp_path / "reg").glob("*.png")] == ["class-00001.png"]


def test_a_run_without_a_painter_says_so(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(reg_data_dir=str(tmp_path / "reg"), class_prompt="an animal", num_class_images=2)
    with pytest.raises(UserError, match="2 class pictures are to be drawn"):
        Trainer(checkpoint, config, tmp_path / "out").run()
    assert not (tmp_path / "reg").exists()
