"""Each format with literal expectations: what becomes which setting, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ext.config.imports import Imported, import_file, import_text
from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import flat_values, make_config
from lora_ext.protocols import ConfigError, UserError

DEFAULTS_OF_SD_SCRIPTS = {
    "network_dim": 4, "network_alpha": 1.0, "learning_rate": 2e-6, "lr_scheduler": "constant", "max_train_epochs": None,
    "max_train_steps": 1600, "train_batch_size": 1, "enable_bucket": False, "min_bucket_reso": 256,
    "max_bucket_reso": 1024, "bucket_reso_steps": 64, "max_token_length": 75, "min_snr_gamma": None,
    "mixed_precision": "no", "loss_type": "l2", "huber_c": 0.1, "huber_scale": 1.0, "huber_schedule": "snr",
    "prior_loss_weight": 1.0, "vae_batch_size": 1, "max_grad_norm": 1.0, "lr_warmup_steps": 0.0,
    "sample_sampler": "DDIM", "optimizer_type": "AdamW", "save_every_n_epochs": None, "save_precision": "float",
    "caption_chunks": "sd-scripts", "caption_extension": "auto", "cache_latents": False,
}  # fmt: skip


def values_of(imported: Imported, *names: str) -> dict[str, Any]:
    values = flat_values(imported.config)
    return {name: values[name] for name in names}


def differences(imported: Imported) -> dict[str, Any]:
    """What differs from sd-scripts' own defaults."""
    empty = flat_values(import_text("seed = 42").config)
    return {name: value for name, value in flat_values(imported.config).items() if value != empty[name]}


def names_of(imported: Imported, kind: Any) -> set[str]:
    return {note.name for note in imported.of_kind(kind)}


def test_what_a_file_leaves_out_is_as_in_sd_scripts() -> None:
    imported = import_text("seed = 7")
    assert values_of(imported, *DEFAULTS_OF_SD_SCRIPTS) == DEFAULTS_OF_SD_SCRIPTS
    assert imported.format == "sd-scripts' TOML" and imported.base_model == ""


SD_SCRIPTS = """
pretrained_model_name_or_path = "D:\\\\models\\\\anything-v3.safetensors"
output_name = "cat"
[dataset_arguments]
train_data_dir = "pictures"
resolution = "512,768"
shuffle_caption = true
keep_tokens = 1
[training]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4", "block_lr_zero_threshold=0.1"]
optimizer_type = "adamw8BIT"
optimizer_args = ["decouple=True", "betas=(0.9, 0.99)"]
text_encoder_lr = [5e-5]
lr_warmup_steps = 0.1
min_snr_gamma = 0
xformers = true
wandb_api_key = "secret"
"""


@pytest.mark.parametrize("text", [SD_SCRIPTS, SD_SCRIPTS.replace("[dataset_arguments]", "").replace("[training]", "")])
def test_sd_scripts_toml_with_and_without_sections(text: str) -> None:
    imported = import_text(text)
    assert differences(imported) == {
        "output_name": "cat", "train_data_dir": "pictures", "resolution": "512,768", "shuffle_caption": True,
        "keep_tokens": 1, "network_dim": 32, "network_alpha": 16.0, "conv_dim": 8, "conv_alpha": 4.0,
        "optimizer_type": "AdamW8bit", "optimizer_args": "decouple=True betas=(0.9,0.99)", "text_encoder_lr": 5e-5,
        "lr_warmup_steps": 0.1,
    }  # fmt: skip
    assert imported.base_model == "D:\\models\\anything-v3.safetensors"
    assert {"xformers", "wandb_api_key", "pretrained_model_name_or_path"} <= names_of(imported, "explained")
    assert not imported.of_kind("lost") and not imported.of_kind("unknown")
    assert "secret" not in " ".join(map(str, imported.notes))


def test_easy_training_scripts_toml() -> None:
    imported = import_text(
        """
[[subsets]]
name = "subset 1"
image_dir = "C:/data/10_cat"
num_repeats = 10
keep_tokens = 1
shuffle_caption = true
[general_args.args]
pretrained_model_name_or_path = "nai.safetensors"
max_train_epochs = 2
clip_skip = 2
[general_args.dataset_args]
resolution = [ 768, 512,]
batch_size = 2
[network_args.args]
network_dim = 8
network_alpha = 4.0
[network_args.args.network_args]
down_lr_weight = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
[optimizer_args.args]
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine"
learning_rate = 0.0001
warmup_ratio = 0.05
[saving_args.args]
save_toml = true
[bucket_args.dataset_args]
enable_bucket = true
[noise_args]
[optimizer_args.args.optimizer_args]
weight_decay = 0.1
betas = "0.9,0.99"
"""
    )
    found = differences(imported)
    assert found.pop("dataset_config") == (
        "[[datasets]]\n\n  [[datasets.subsets]]\n"
        '  image_dir = "C:/data/10_cat"\n  num_repeats = 10\n  keep_tokens = 1\n  shuffle_caption = true\n'
    )
    assert found == {
        "max_train_epochs": 2, "clip_skip": 2, "resolution": "768,512", "train_batch_size": 2, "network_dim": 8,
        "network_alpha": 4.0, "block_lr": ",".join(["0.5"] * 12 + ["1"] * 13), "optimizer_type": "AdamW8bit",
        "lr_scheduler": "cosine", "learning_rate": 1e-4, "lr_warmup_steps": 0.05, "enable_bucket": True,
        "optimizer_args": "weight_decay=0.1 betas=0.9,0.99",
    }  # fmt: skip
    assert imported.base_model == "nai.safetensors" and not imported.of_kind("unknown")


KOHYA = {
    "LoRA_type": "LyCORIS/LoCon", "additional_parameters": "--min_timestep=10", "bucket_no_upscale": True,
    "bucket_reso_steps": 64.0, "conv_alpha": 1, "conv_dim": 32, "epoch": 3, "learning_rate": "0.0001",
    "lr_scheduler": "cosine", "lr_scheduler_num_cycles": "", "lr_warmup": "10", "max_resolution": "512,512",
    "max_train_epochs": "", "min_snr_gamma": 0, "multires_noise_discount": 0.2, "multires_noise_iterations": 8,
    "network_alpha": 64, "network_dim": 64, "noise_offset": "0.05", "noise_offset_type": "Original",
    "optimizer": "AdamW8bit", "seed": "1234", "stop_text_encoder_training": 0, "text_encoder_lr": "5e-05",
    "train_batch_size": 3, "unet_lr": "0.0001", "v_parameterization": False, "vae_batch_size": 0,
    "xformers": "xformers", "num_cpu_threads_per_process": 2, "model_list": "custom",
}  # fmt: skip


def test_kohya_ss_json() -> None:
    imported = import_text(json.dumps(KOHYA))
    assert differences(imported) == {
        "bucket_no_upscale": True, "conv_alpha": 1.0, "conv_dim": 32, "max_train_epochs": 3, "learning_rate": 1e-4,
        "lr_scheduler": "cosine", "lr_warmup_steps": 0.1, "network_alpha": 64.0, "network_dim": 64,
        "noise_offset": 0.05, "optimizer_type": "AdamW8bit", "seed": 1234, "text_encoder_lr": 5e-5,
        "train_batch_size": 3, "unet_lr": 1e-4,
        "min_timestep": 10, "network_preset": "full",
    }  # fmt: skip
    assert imported.format == "a preset of kohya_ss"
    assert not imported.of_kind("unknown") and not imported.of_kind("lost")


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"unet_lr": 0, "text_encoder_lr": 1e-5}, {"network_train_text_encoder_only": True, "unet_lr": None}),
        ({"unet_lr": 1e-4, "text_encoder_lr": 0}, {"network_train_unet_only": True, "text_encoder_lr": None}),
        ({"unet_lr": 0, "text_encoder_lr": 0}, {"network_train_unet_only": False, "unet_lr": None}),
        ({"LoRA_type": "Standard"}, {"conv_dim": None, "conv_alpha": None}),
        ({"LoRA_type": "LyCORIS/DyLoRA", "unit": 8}, {"network_algorithm": "dylora", "block_size": 8}),
        ({"LoRA_type": "LyCORIS/Diag-OFT", "constrain": 0.5}, {"network_algorithm": "diag-oft", "constraint": 0.5}),
        (
            {"LoRA_type": "LyCORIS/LoKr", "factor": 8, "LyCORIS_preset": "attn-mlp"},
            {"network_algorithm": "lokr", "factor": 8, "network_preset": "attn-mlp"},
        ),
        ({"LoRA_type": "LoRA-FA", "unit": 1}, {"network_algorithm": "lora", "lora_fa": True, "block_size": 4}),
        ({"max_train_steps": 500}, {"max_train_epochs": None, "max_train_steps": 500}),
        ({"noise_offset_type": "Multires"}, {"noise_offset": 0.0, "multires_noise_iterations": 8}),
        ({"v_parameterization": True}, {"prediction_type": "v_prediction"}),
        ({"lr_scheduler": "constant"}, {"lr_warmup_steps": 0.0}),
        ({"stop_text_encoder_training_pct": 30}, {"stop_text_encoder_training": 30}),
    ],
)
def test_what_the_form_of_kohya_ss_means(given: dict[str, Any], settings: dict[str, Any]) -> None:
    imported = import_text(json.dumps({**KOHYA, **given}))
    assert values_of(imported, *settings) == settings


COMMAND = (
    'accelerate launch --num_cpu_threads_per_process 8 --mixed_precision=bf16 "./sd-scripts/train_network.py"{0}'
    r' --pretrained_model_name_or_path="C:\models\my model.ckpt" --train_data_dir="C:\train data"{0}'
    " --network_module=networks.lora --network_args conv_dim=8 'conv_alpha=1'{0}"
    " --resolution=512,512 --text_encoder_lr 5e-5 --unet_lr=1e-4 --enable_bucket{0}"
    " --optimizer_args weight_decay=0.1 betas=0.9,0.99 --max_train_epochs 5 --use_8bit_adam --seed=1"
)


@pytest.mark.parametrize(
    "line_end", ["", " \\\n", " ^\r\n", " `\n"], ids=["one line", "shell", "Windows", "PowerShell"]
)
def test_a_command_line(line_end: str) -> None:
    imported = import_text(COMMAND.format(line_end))
    assert differences(imported) == {
        "train_data_dir": "C:\\train data",
        "conv_dim": 8, "conv_alpha": 1.0, "text_encoder_lr": 5e-5, "unet_lr": 1e-4, "enable_bucket": True,
        "optimizer_args": "weight_decay=0.1 betas=0.9,0.99", "max_train_epochs": 5, "optimizer_type": "AdamW8bit",
        "seed": 1,
    }  # fmt: skip
    assert imported.base_model == "C:\\models\\my model.ckpt"


def test_a_command_in_a_script_with_variables_of_the_shell() -> None:
    imported = import_text(
        """#!/bin/bash
pretrained_model="./models/base.safetensors"
network_dim=16 # rank
export lr=1e-4
python train_network.py --network_module=networks.lora --pretrained_model_name_or_path=$pretrained_model \\
  --network_dim=${network_dim} --learning_rate=$lr --output_name=$name
echo done
"""
    )
    assert differences(imported) == {"network_dim": 16, "learning_rate": 1e-4}
    assert imported.base_model == "./models/base.safetensors"
    assert [str(note) for note in imported.of_kind("lost")] == [
        "output_name: $name: the text does not say what it stands for"
    ]


def test_options_below_each_other_and_nothing_after_them() -> None:
    imported = import_text("--network_dim=8\n--unet_lr 1e-4\n\npause\n")
    assert differences(imported) == {"network_dim": 8, "unet_lr": 1e-4}


GUIDES = """\
# Path variables
$ckpt = "X:\\models\\nai.ckpt" # checkpoint
$image_dir = "X:\\train\\"
$name = "cat"
$output_name = "$name" + "-v2"
$reg_dir = ""
$num_epochs = 10
$train_batch_size = 2
$resolution = 512
$save_every_n_epochs = 1
$max_token_length = 225
$clip_skip = 2
$learning_rate = 1e-4
$unet_lr = 1e-4
$text_encoder_lr = 5e-5
$scheduler = "cosine_with_restarts"
$lr_warmup_ratio = 0.05
$lr_r_num_cycles = 4
$optimizer_t = "adamw"
$network_dim = 32
$network_alpha = 16
$shuffle_caption = $true
$keep_tokens = 1
$noise_offset = 0
$min_snr_gamma = 5
$script_paths = @(
  "one.ps1"
)
$total = [int](2 * 3)
$is_sd_v2_ckpt = 0
Write-Output "Calculating"
$iterations = 0
"""


def test_a_powershell_script_of_the_guides() -> None:
    imported = import_text(GUIDES)
    assert differences(imported) == {
        "train_data_dir": "X:\\train\\", "output_name": "cat-v2", "max_train_epochs": 10, "train_batch_size": 2,
        "save_every_n_epochs": 1, "max_token_length": 225, "clip_skip": 2, "learning_rate": 1e-4, "unet_lr": 1e-4,
        "text_encoder_lr": 5e-5, "lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 0.05,
        "lr_scheduler_num_cycles": 4, "network_dim": 32, "network_alpha": 16.0, "shuffle_caption": True,
        "keep_tokens": 1, "min_snr_gamma": 5.0,
    }  # fmt: skip
    assert imported.base_model == "X:\\models\\nai.ckpt"
    assert names_of(imported, "lost") == {"total"} and not imported.of_kind("unknown")


def test_a_share_of_the_rate_and_the_options_of_the_command_below() -> None:
    script = """$lr = "1e-4"
$unet_lr = 2e-4
$text_encoder_lr = 0.5
$rank = 8
$unused = 3
<# ##### Config end ##### #>
$text_encoder_lr_output = $unet_lr * $text_encoder_lr
accelerate launch "./train_network.py" `
  --network_dim=$rank `
  --network_alpha=4 `
  --learning_rate=$lr --seed="1337"
"""
    imported = import_text(script)
    assert differences(imported) == {
        "learning_rate": 1e-4, "unet_lr": 2e-4, "text_encoder_lr": 1e-4, "network_dim": 8, "network_alpha": 4.0,
        "seed": 1337,
    }  # fmt: skip
    assert names_of(imported, "unknown") == {"unused"}


def test_lora_train_gui_and_the_first_easy_training_scripts() -> None:
    imported = import_text(
        "version=0.21\n\n##### SETTINGS #####\n\nlearning_rate: 0.0002\nnetwork_dim: 64\nlr_warmup_ratio: 0.1\n"
        "shuffle_caption: True\nadditional_parameters: --min_snr_gamma=5\ntrain_speed_type: it/s\n"
    )
    assert differences(imported) == {
        "learning_rate": 2e-4, "network_dim": 64, "lr_warmup_steps": 0.1, "shuffle_caption": True, "min_snr_gamma": 5.0,
    }  # fmt: skip
    assert names_of(imported, "explained") >= {"train_speed_type"}
    imported = import_text(json.dumps({
        "img_folder": "pics", "net_dim": 8, "alpha": 4, "scheduler": "cosine", "cosine_restarts": 2, "num_epochs": 3,
        "optimizer_args": {"weight_decay": "0.1", "betas": "0.9,0.99"}, "unet_only": True,
        "max_clip_token_length": None,
    }))  # fmt: skip
    assert differences(imported) == {
        "train_data_dir": "pics", "network_dim": 8, "network_alpha": 4.0, "lr_scheduler": "cosine",
        "lr_scheduler_num_cycles": 2, "max_train_epochs": 3, "optimizer_args": "weight_decay=0.1 betas=0.9,0.99",
        "network_train_unet_only": True,
    }  # fmt: skip


def test_sd_dreambooth() -> None:
    concepts = [{"instance_data_dir": "pics", "instance_prompt": "[filewords]", "class_prompt": "a cat"}]
    imported = import_text(json.dumps({
        "concepts_list": concepts, "use_lora": True, "lora_learning_rate": 1e-4, "num_train_epochs": 20,
        "save_preview_every": 5, "optimizer": "8bit AdamW", "pause_after_n_epochs": 3,
    }))  # fmt: skip
    found = differences(imported)
    assert json.loads(found.pop("dataset_config")) == concepts
    assert found == {
        "unet_lr": 1e-4, "max_train_epochs": 20, "sample_every_n_epochs": 5, "optimizer_type": "AdamW8bit",
    }  # fmt: skip
    assert "pause_after_n_epochs" in names_of(imported, "explained")


DATASETS = {
    "a dataset file of sd-scripts": "[general]\nflip_aug = true\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n",
    "a concept list of sd_dreambooth": '[{"instance_data_dir": "x", "instance_prompt": "a cat"}]',
    "a metadata file of sd-scripts": '{"a.png": {"caption": "a cat", "tags": "cat"}}',
    "a metadata file with a picture a line": '{"file_name": "a", "text": "a cat"}\n{"file_name": "b", "text": "a dog"}',
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_description_of_a_dataset_changes_the_dataset_alone(kind: str, tmp_path: Path) -> None:
    base = make_config({"network_dim": 8, "output_name": "cat"})
    imported = import_text(DATASETS[kind], base)
    assert imported.format == kind
    assert imported.config == make_config({"dataset_config": DATASETS[kind].strip()}, base)
    path = tmp_path / "dataset"
    path.write_text(DATASETS[kind], encoding="utf-8")
    assert import_file(path, base).config.dataset.dataset_config == str(path)


def test_a_training_and_its_dataset_in_one_file() -> None:
    imported = import_text("network_dim = 8\n[general]\nkeep_tokens = 1\n[[datasets]]\nbatch_size = 4\n")
    assert imported.config.dataset.dataset_config == "[general]\nkeep_tokens = 1\n\n[[datasets]]\nbatch_size = 4\n"
    assert imported.config.network.network_dim == 8


def test_our_own_files_are_taken_as_they_are() -> None:
    config = make_config({"network_dim": 8, "unet_lr": 2e-4, "output_name": "cat"})
    imported = import_text(config_to_toml(config))
    assert imported.config == config and imported.format == "settings of LoRA Workshop"


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        (
            {"network_module": "networks.oft"},
            "network_module: networks.oft cannot be trained here; the nearest is network_algorithm = diag-oft",
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=abba"]},
            "algo: abba: allowed are lora, dylora, loha",
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["preset=mine"]},
            "preset: mine: allowed are attn-mlp, full",
        ),
        ({"network_module": "networks.lora_flux"}, "network_module: networks.lora_flux cannot be trained here"),
        (
            {"network_args": ["mid_lr_weight=1", "block_lr_zero_threshold=low"]},
            "block_lr_zero_threshold: 'low' is no number",
        ),
        ({"network_args": ["up_lr_weight=flat"]}, "up_lr_weight: 'flat' is no list of 12 numbers and no curve"),
        ({"text_encoder_lr": [1e-5, 2e-5, 0]}, "text_encoder_lr: 1e-05,2e-05,0: there are two text encoders at most"),
        ({"caption_extension": ".wd14"}, "caption_extension: .wd14: captions are read from .txt and .caption files"),
        ({"save_n_epoch_ratio": 5}, "save_n_epoch_ratio: 5: set save_every_n_epochs"),
        (
            {"sdxl": True, "network_args": ["block_dims=" + ",".join("8" * 25)]},
            "block_dims: 8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8: SDXL has 23 blocks, and these are SD1's 25",
        ),
        ({"config_file": "a.toml"}, "config_file: a.toml: settings stand in that file too"),
    ],
)
def test_what_cannot_be_carried_over_is_named(options: dict[str, Any], lost: str) -> None:
    (note,) = import_text(json.dumps({"seed": 1, **options})).of_kind("lost")
    assert str(note).startswith(lost)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"network_module": "lycoris.kohya", "network_dim": 8, "network_alpha": 4},
         {"network_algorithm": "lora", "network_preset": "full", "conv_dim": None, "conv_alpha": None}),
        ({"network_module": "lycoris.kohya", "network_dim": 100000, "network_args":
          ["algo=lokr", "factor=8", "preset=attn-mlp", "conv_dim=4", "decompose_both=False", "dora_wd=True"]},
         {"network_algorithm": "lokr", "network_preset": "attn-mlp", "factor": 8, "dora_wd": True, "conv_dim": None,
          "decompose_both": False, "full_matrix": True, "network_dim": 1024}),
        ({"network_module": "lycoris.kohya", "network_args": {"algo": "LoCon", "use_cp": "True", "constrain": "0.1"}},
         {"network_algorithm": "lora", "use_tucker": True, "constraint": 0.1}),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=diag-oft", "rescaled=True", "wd_on_output=False"]},
         {"network_algorithm": "diag-oft", "rescaled": True, "wd_on_output": False}),
        ({"network_module": "networks.dylora", "network_args": ["unit=2"]},
         {"network_algorithm": "dylora", "block_size": 2, "network_preset": "attn-mlp"}),
        ({"network_module": "networks.lora_fa"}, {"network_algorithm": "lora", "lora_fa": True}),
        ({"text_encoder_lr": [1e-5, 2e-5]}, {"text_encoder_lr": 1e-5, "text_encoder_2_lr": 2e-5}),
        ({"network_module": "locon.locon_kohya", "network_args": ["conv_dim=2", "dropout=0.1"], "network_dim": 8},
         {"conv_dim": 2, "conv_alpha": 1.0, "network_dropout": 0.1}),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lora", "conv_dim=0"]},
         {"conv_dim": None, "network_preset": "full-lin"}),
        ({"network_module": "networks.lora", "network_dim": 8}, {"conv_dim": None, "conv_alpha": None}),
        ({"network_args": "down_lr_weight=linear+0.25 mid_lr_weight=1,0.5,0.5 block_lr_zero_threshold=0.3"},
         {"block_lr": "1,0,0.375,0.5,0.625,0.75,0.875,1,1.125,1.25,1,0.5,0.5,1,1,1,1,1,1,1,1,1,1"}),
        ({"sdxl": True, "network_args": ["down_lr_weight=cosine"]},
         {"block_lr": "1,1,0.980785,0.92388,0.83147,0.707107,0.55557,0.382683,0.19509,0,1,1,1,1,1,1,1,1,1,1,1,1,1"}),
        ({"network_args": ["block_dims=" + ",".join("8" * 25)]}, {"block_dims": ",".join("8" * 25)}),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=10", "gamma=0.5"]},
         {"lr_scheduler": "torch.optim.lr_scheduler.StepLR", "lr_scheduler_args": "step_size=10 gamma=0.5"}),
        ({"lr_scheduler_type": "cosine_annealing_warmup.CosineAnnealingWarmupRestarts",
          "lr_scheduler_args": "T_0=100 gamma_min_lr=0.999 decay=0.9 down_factor=0.5 warmup_steps=10 cycle_warmup=5"},
         {"lr_scheduler": "cosine_annealing_warmup_restarts",
          "lr_scheduler_args": "T_0=100 gamma_min_lr=0.999 decay=0.9 down_factor=0.5 warmup_steps=10 cycle_warmup=5"}),
        ({"lr_scheduler_type": "LoraEasyCustomOptimizer.CustomOptimizers.Rex", "learning_rate": 1e-4,
          "lr_scheduler_args": {"min_lr": 1e-6}}, {"lr_scheduler": "rex", "lr_scheduler_min_lr_ratio": 0.01}),
        ({"lr_scheduler_type": "a.CosineAnnealingWarmRestarts",
          "lr_scheduler_args": {"first_cycle_steps": 50, "gamma": 0.9}},
         {"lr_scheduler": "cosine_annealing_warmup_restarts", "lr_scheduler_args": "T_0=50 decay=0.9"}),
        ({"lr_scheduler": "adafactor:1e-3", "optimizer_type": "adafactor"},
         {"lr_scheduler": "adafactor", "optimizer_type": "AdaFactor"}),
        ({"ema_decay": 0.999, "on_out_of_memory": "retreat"}, {"ema_decay": 0.999, "on_out_of_memory": "retreat"}),
        ({"lr_warmup_steps": "5%", "lr_decay_steps": "100"}, {"lr_warmup_steps": 0.05, "lr_decay_steps": 100.0}),
        ({"base_weights": ["a.safetensors", "b.safetensors"], "base_weights_multiplier": [0.5, 1]},
         {"base_weights": "a.safetensors\nb.safetensors", "base_weights_multiplier": "0.5,1"}),
        ({"save_model_as": "pt", "log_with": "all", "resize_interpolation": "cubic"},
         {"save_model_as": "ckpt", "log_with": "tensorboard", "resize_interpolation": "bicubic"}),
        ({"in_json": "meta.json", "train_data_dir": "x"}, {"dataset_config": "meta.json", "train_data_dir": "x"}),
        ({"scale_weight_norms": 0, "save_every_n_steps": 0, "noise_offset": 0, "conv_dim": 0},
         {"scale_weight_norms": None, "save_every_n_steps": None, "noise_offset": 0.0, "conv_dim": None}),
        ({"stop_text_encoder_training": -1}, {"network_train_unet_only": True}),
        ({"optimizer_args": '"decouple=True" "betas=0.9,0.99"'}, {"optimizer_args": "decouple=True betas=0.9,0.99"}),
        ({"optimizer_type": "some.package.Class"}, {"optimizer_type": "some.package.Class"}),
        ({"use_lion_optimizer": True, "caption_extention": "txt", "resolution": [512, 512]},
         {"optimizer_type": "Lion", "caption_extension": ".txt", "resolution": "512"}),
        ({"face_crop_aug_range": "2.0,4.0", "max_token_length": "none", "seed": "12"},
         {"face_crop_aug_range": "2.0,4.0", "max_token_length": 75, "seed": 12}),
    ],
)  # fmt: skip
def test_values_in_other_forms(options: dict[str, Any], settings: dict[str, Any]) -> None:
    assert values_of(import_text(json.dumps({"lowram": True, **options})), *settings) == settings


def test_values_that_do_not_fit_are_lost_and_named() -> None:
    imported = import_text(
        "network_dim = 0\nbucket_reso_steps = 1\nresolution = '512,650'\nclip_skip = 'many'\nseed = 3"
    )
    assert [str(note) for note in imported.of_kind("lost")] == [
        "network_dim: network_dim = 0: allowed is a whole number from 1 to 1024",
        "bucket_reso_steps: bucket_reso_steps = 1: allowed is a whole number from 8 to 512, a multiple of 8",
        "resolution: 512,650: allowed is one number or width,height, each a multiple of 8",
        "clip_skip: clip_skip = 'many': allowed is a whole number from 1 to 12",
    ]
    assert differences(imported) == {"seed": 3}


def test_values_that_fight_each_other_are_refused_together() -> None:
    with pytest.raises(ConfigError) as raised:
        import_text("min_bucket_reso = 512\nmax_bucket_reso = 256\noutput_name = 'a/b'")
    assert len(raised.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("once upon a time", "no format that is known; allowed are TOML of sd-scripts"),
        ("{", "cannot be read as JSON"),
        ("[1, 2]", "holds no settings"),
        ('accelerate launch train_network.py --output_name="cat', "a quote that is not closed"),
    ],
)
def test_what_is_no_configuration(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_text(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file to import"):
        import_file(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b"output_name = '\xe4'")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        import_file(tmp_path / "latin.toml")
    with pytest.raises(UserError, match="cannot be read"):
        import_file(tmp_path)
    (tmp_path / "utf16.ps1").write_bytes("$network_dim = 8\r\n$unet_lr = 1e-4\r\n".encode("utf-16"))
    assert import_file(tmp_path / "utf16.ps1").config.network.network_dim == 8


@pytest.mark.parametrize(
    ("base", "loaded", "warns"),
    [
        ("C:\\models\\nai.ckpt", "nai.ckpt [89d59c3dde]", False),
        ("models/NAI.safetensors", "/home/me/nai.ckpt", False),
        ("runwayml/stable-diffusion-v1-5", "nai", True),
        ("", "nai", False),
    ],
)
def test_the_checkpoint_that_was_meant(base: str, loaded: str, warns: bool) -> None:
    imported = Imported("", {}, make_config({}), base_model=base)
    warning = imported.base_model_warning(loaded)
    assert (warning is not None) == warns
    if warning:
        assert "stable-diffusion-v1-5" in warning and "nai is loaded" in warning


def test_a_log_folder_alone_switches_tensorboard_on_in_sd_scripts_and_that_is_said() -> None:
    imported = import_text('network_dim = 8\nlogging_dir = "logs"')
    assert imported.values["logging_dir"] == "logs"
    (note,) = [str(each) for each in imported.of_kind("explained") if each.name == "log_with"]
    assert "set it to tensorboard" in note
