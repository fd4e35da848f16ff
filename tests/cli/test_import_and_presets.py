"""Presets, imports and exports from a shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ext.config.toml_files import read_config

SD_SCRIPTS = """
network_dim = 8
output_name = "cat"
resolution = 64
min_bucket_reso = 64
unet_rl = 1e-4
xformers = true
"""


@pytest.fixture
def imported_file(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.toml"
    path.write_text(SD_SCRIPTS, encoding="utf-8")
    return path


def test_import_writes_a_settings_file_and_says_what_became_of_the_names(
    command: Callable, imported_file: Path, tmp_path: Path
) -> None:
    done = command("import", imported_file, "--out", tmp_path / "ours.toml", "--all")
    assert done.code == 0 and done.out == ""
    assert "sd-scripts' TOML: 4 settings taken over" in done.err
    assert "unknown: unet_rl: no option that is known here; did you mean unet_lr?" in done.err
    assert "explained: xformers: not needed" in done.err
    config = read_config(tmp_path / "ours.toml")
    assert (config.network.network_dim, config.network.network_alpha) == (8, 1.0)


def test_train_takes_an_import_with_presets_below_and_settings_above(
    command: Callable, imported_file: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = ("--set", f"train_data_dir={pictures}", "--set", "network_alpha=2")
    done = command("train", "--preset", "character", "--import", imported_file, *settings, "--show-config")
    assert done.code == 0 and "unknown: unet_rl" in done.err
    (tmp_path / "shown.toml").write_text(done.out, encoding="utf-8")
    config = read_config(tmp_path / "shown.toml")
    assert (config.network.network_dim, config.network.network_alpha) == (8, 2.0)
    assert config.network.scale_weight_norms == 1.0 and config.learning.learning_rate == 2e-6


def test_the_shell_puts_right_what_fights_in_an_import(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "masked.toml").write_text("network_dim = 8\nmasked_loss = true", encoding="utf-8")
    asked = ("train", "--import", tmp_path / "masked.toml", "--show-config")
    assert "masked_loss is on and there are no masks" in command(*asked).err
    done = command(*asked, "--set", "alpha_mask=true")
    assert done.code == 0 and "masked_loss = true" in done.out


def test_train_refuses_what_would_be_trained_otherwise(command: Callable, imported_file: Path) -> None:
    imported_file.write_text(SD_SCRIPTS + 'network_module = "networks.oft"\n', encoding="utf-8")
    done = command("train", "--import", imported_file, "--plan")
    assert (
        done.code == 2
        and "cannot be carried over whole" in done.err
        and "networks.oft cannot be trained here" in done.err
    )


def test_the_checkpoint_of_an_import(command: Callable, imported_file: Path, tmp_path: Path) -> None:
    gone = SD_SCRIPTS + f"pretrained_model_name_or_path = '{tmp_path / 'gone.safetensors'}'\n"
    imported_file.write_text(gone, encoding="utf-8")
    done = command("train", "--import", imported_file, "--show-config")
    assert done.code == 2 and "gone.safetensors, which is not there: give a checkpoint with --checkpoint" in done.err
    assert command("train", "--import", imported_file, "--checkpoint", "x", "--show-config").code == 0


def test_export_for_sd_scripts(command: Callable, tmp_path: Path) -> None:
    done = command("train", "--preset", "style", "--export", tmp_path / "theirs.toml", "--checkpoint", "nai.ckpt")
    assert done.code == 0
    text = (tmp_path / "theirs.toml").read_text(encoding="utf-8")
    assert 'pretrained_model_name_or_path = "nai.ckpt"' in text and '"conv_dim=32"' in text
    assert command("import", tmp_path / "theirs.toml").code == 0


def test_a_preset_that_is_none(command: Callable) -> None:
    done = command("train", "--preset", "portrait", "--plan")
    assert done.code == 2 and "there is no preset 'portrait': allowed are character" in done.err
