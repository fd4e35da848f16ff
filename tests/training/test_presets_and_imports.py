"""Presets and imported configurations are not only valid: each trains for two steps, at a size that takes no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.imports import import_text
from lora_ext.config.presets import compose, preset_named
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.training.trainer import Trainer

pytestmark = pytest.mark.slow

SMALL = {
    "resolution": "64", "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 16, "output_name": "cat",
    "max_train_epochs": None, "max_train_steps": 2, "save_every_n_epochs": None, "save_sidecar": "no",
}  # fmt: skip


def train_two_steps(checkpoint: Checkpoint, config: TrainConfig, folder: Path) -> None:
    result = Trainer(checkpoint, config, folder / "out").run()
    assert result.steps == 2 and len(result.losses) == 2
    assert all(0 < loss < 100 for loss in result.losses)
    assert result.files[-1].is_file()


@pytest.mark.parametrize(
    "names",
    [("character", "card-24gb"), ("style", "card-12gb"), ("concept", "card-8gb"), ("sdxl", "card-6gb")],
    ids=" + ".join,
)
def test_every_preset(names: tuple[str, str], checkpoint: Checkpoint, pictures: Path, tmp_path: Path) -> None:
    short = {"gradient_accumulation_steps": 2, "lr_scheduler_num_cycles": 2}  # cycles of a step at least
    values = {**compose(map(preset_named, names)), **SMALL, **short, "train_data_dir": str(pictures)}
    train_two_steps(checkpoint, make_config(values), tmp_path)


def easy_training(**options: Any) -> str:
    """A file of LoRA_Easy_Training_Scripts."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    return f"[general_args.args]\nmax_train_epochs = 2\n[general_args.dataset_args]\nbatch_size = 2\n[x.args]\n{lines}"


def kohya(**options: Any) -> str:
    """A preset of kohya_ss."""
    return json.dumps({"LoRA_type": "Standard", "max_resolution": "512,512", "epoch": 2, "lr_warmup": 10, **options})


IMPORTS = {
    "plain": "network_dim = 8\nlearning_rate = 1e-4\n",
    "in sections": "[network_arguments]\nnetwork_dim = 4\n[training]\nlr_scheduler = 'cosine'\nlearning_rate = 1e-4\n",
    "min-SNR and noise offset": "learning_rate = 1e-4\nmin_snr_gamma = 5\nnoise_offset = 0.05\n",
    "v-prediction": "learning_rate = 1e-4\nv_parameterization = true\nscale_v_pred_loss_like_noise_pred = true\n",
    "LoCon": "learning_rate = 1e-4\nnetwork_module = 'networks.lora'\nnetwork_args = ['conv_dim=4', 'conv_alpha=1']\n",
    "by block": f"learning_rate = 1e-4\nnetwork_args = ['block_dims={','.join(['2'] * 25)}', 'mid_lr_weight=0.5']\n",
    "LoRA+": "learning_rate = 1e-4\nnetwork_args = ['loraplus_lr_ratio=8']\n",
    "dropouts": "learning_rate = 1e-4\nnetwork_dropout = 0.1\nnetwork_args = 'rank_dropout=0.2 module_dropout=0.1'\n",
    "max norm": "learning_rate = 1e-4\nscale_weight_norms = 1.0\n",
    "clip skip and long captions": "learning_rate = 1e-4\nclip_skip = 2\nmax_token_length = 150\n",
    "captions": "learning_rate = 1e-4\nshuffle_caption = true\nkeep_tokens = 1\ncaption_tag_dropout_rate = 0.2\n",
    "huber and multires": "learning_rate = 1e-4\nloss_type = 'huber'\nmultires_noise_iterations = 6\n",
    "views": "learning_rate = 1e-4\nflip_aug = true\nrandom_crop = true\ncolor_aug = true\n",
    "LyCORIS in an easy file": easy_training(network_module="lycoris.kohya", network_dim=4, learning_rate=1e-4),
    "easy with restarts": easy_training(
        learning_rate=1e-4, lr_scheduler_type="x.CosineAnnealingWarmupRestarts", lr_scheduler_args=["gamma=0.9"]
    ),
    "Prodigy in a preset": kohya(
        optimizer="Prodigy", learning_rate=1, unet_lr=1, text_encoder_lr=1, optimizer_args="decouple=True d_coef=2"
    ),
    "AdaFactor in a preset": kohya(optimizer="Adafactor", learning_rate=1e-4, lr_scheduler="adafactor:1e-4"),
    "a preset of the U-Net alone": kohya(learning_rate=1e-4, unet_lr=1e-4, text_encoder_lr=0, optimizer="Lion"),
    "a command": "accelerate launch train_network.py --optimizer_type=SGDNesterov --learning_rate=1e-3 \\\n"
    "  --lr_scheduler=polynomial --lr_scheduler_power=2 --gradient_accumulation_steps=2 --gradient_checkpointing",
    "a script": "$unet_lr = 1e-4\n$text_encoder_lr = 5e-5\n$scheduler = 'cosine_with_restarts'\n$lr_r_num_cycles = 2\n"
    "$optimizer_t = 'DAdaptAdam'\n$learning_rate = 1\n$unet_lr = 1\n$text_encoder_lr = 1\n$num_epochs = 2\n",
}
"""Twenty configurations as people bring them."""


@pytest.mark.parametrize("name", IMPORTS)
def test_imported_configurations(name: str, checkpoint: Checkpoint, pictures: Path, tmp_path: Path) -> None:
    imported = import_text(IMPORTS[name])
    assert not imported.of_kind("lost") and not imported.of_kind("unknown")
    train_two_steps(checkpoint, make_config({**SMALL, "train_data_dir": str(pictures)}, imported.config), tmp_path)
