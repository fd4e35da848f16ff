"""Runs whose latents and text states are kept, kept in files, or made anew: the same losses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.tensor_cache import FOLDER_NAME
from lora_ext.networks.file import read_network
from lora_ext.protocols import UserError
from lora_ext.training.trainer import Trainer, TrainingResult

pytestmark = pytest.mark.slow

Runs = Callable[..., TrainingResult]


@pytest.fixture
def trained(checkpoint: Checkpoint, small_config: Callable[..., TrainConfig], tmp_path: Path) -> Runs:
    """One epoch on the pictures, the text encoder left as it is."""

    def train(**values: Any) -> TrainingResult:
        config = small_config(max_train_epochs=1, network_train_unet_only=True, **values)
        return Trainer(checkpoint, config, tmp_path / "out").run()

    return train


def test_all_caches_go_together(trained: Runs, pictures: Path) -> None:
    values = {
        "flip_aug": True, "alpha_mask": True, "shuffle_caption": True, "caption_dropout_rate": 0.2,
        "caption_variants": 3,
    }  # fmt: skip
    on_disk = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
    expected = trained(**values).losses
    assert trained(**on_disk, **values).losses == expected
    cache = pictures / "2_cat" / FOLDER_NAME
    written = {path: path.read_bytes() for path in cache.iterdir()}
    kinds = [path.name.split("-")[0] for path in written]
    assert kinds.count("latents") == 6 and 7 < kinds.count("encodings") <= 10  # three versions of each, and none
    assert trained(**on_disk, **values).losses == expected
    assert {path: path.read_bytes() for path in cache.iterdir()} == written
    assert trained(cache_latents=False, **values).losses == expected


def test_another_vae_gives_other_latents_and_stands_in_the_file(
    trained: Runs, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    own = {name: tensor.clone() for name, tensor in checkpoint.vae.state_dict().items()}
    file = tmp_path / "bright.vae.safetensors"
    save_file({f"first_stage_model.{name}": tensor for name, tensor in own.items()}, file)
    expected = trained().losses
    assert trained(vae=str(file)).losses == expected
    bias = torch.linspace(-3, 3, own["quant_conv.bias"].numel())
    save_file({**own, "quant_conv.bias": own["quant_conv.bias"] + bias}, file)
    result = trained(vae=f'"{file}"')
    assert result.losses != expected
    metadata = read_network(result.files[-1]).metadata
    assert metadata["ss_vae_name"] == "bright.vae.safetensors"
    assert metadata["ss_new_vae_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="lacks"):
        trained(vae=str(file))


def test_random_pictures_repeat_with_the_seed(trained: Runs) -> None:
    values = {"random_crop": True, "color_aug": True, "resolution": "48"}
    assert trained(**values).losses == trained(**values).losses != trained(resolution="48").losses
