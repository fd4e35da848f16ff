"""Everything a person can get wrong: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def train(command: Callable, pictures: Path, tiny_checkpoint_path: Path, tmp_path: Path) -> Callable:
    """`train` with what is right by default; `given` replaces or adds settings, `options` follow as they are."""

    def run(*options: object, **given: object) -> object:
        small = {"resolution": 64, "min_bucket_reso": 64, "network_dim": 4, "max_train_epochs": 1}
        settings = {"train_data_dir": pictures, "output_name": "net", **small, **given}
        assignments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        return command(
            "train", "--checkpoint", tiny_checkpoint_path, "--home", tmp_path / "home", *assignments, *options
        )

    return run


def refused(done: object, *words: str) -> None:
    """The command ended with exit code 2 and a message that holds all of `words`."""
    assert done.code == 2
    assert "Traceback" not in done.err + done.out
    assert done.err.startswith(("error: ", "usage: "))
    for word in words:
        assert word in done.err


def test_missing_folder(train: Callable, tmp_path: Path) -> None:
    refused(train(train_data_dir=tmp_path / "nowhere"), "nowhere", "train_data_dir")


def test_empty_folder(train: Callable, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    refused(train(train_data_dir=tmp_path / "nothing"), "nothing", "png")


def test_no_folder_given(train: Callable) -> None:
    refused(train(train_data_dir=""), "train_data_dir")


def test_broken_image(train: Callable, pictures: Path) -> None:
    (pictures / "three.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much of a picture")
    refused(train(), "three.png")


def test_caption_that_is_not_utf8(train: Callable, pictures: Path) -> None:
    (pictures / "one.txt").write_bytes("ein schöner Hut".encode("latin-1"))
    refused(train(), "one.txt", "UTF-8")


def test_unknown_setting_names_the_nearest(train: Callable) -> None:
    refused(train(unet_rl="1e-4"), "unet_rl", "unet_lr")


def test_wrong_type(train: Callable) -> None:
    refused(train(network_dim="many"), "network_dim = 'many'", "a whole number")


def test_out_of_range(train: Callable) -> None:
    refused(train(network_dim=0), "network_dim = '0'", "from 1 to 1024")


def test_all_settings_problems_at_once_from_file_and_shell(train: Callable, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[network]\nconv_dim = -3\n[learning]\nlr_scheduler = "jumpy"\n', encoding="utf-8")
    done = train("--config", config, "--set", "nonsense", colour="red")
    refused(done, "conv_dim", "lr_scheduler", "colour", "--set nonsense", "NAME=VALUE")


def test_the_shell_puts_right_what_fights_in_a_file(command: Callable, tmp_path: Path) -> None:
    """Only what comes of preset, file and shell together is looked at as a whole."""
    file = tmp_path / "half.toml"
    file.write_text("resolution = 768\nmax_bucket_reso = 512\nnetwork_dim = 0", encoding="utf-8")
    asked = ("train", "--config", file, "--show-config")
    assert "max_bucket_reso = 512 is below the resolution 768" in command(*asked).err
    done = command(*asked, "--set", "max_bucket_reso=1024", "--set", "network_dim=8")
    assert done.code == 0 and "max_bucket_reso = 1024" in done.out


def test_settings_file_that_is_not_there(train: Callable, tmp_path: Path) -> None:
    refused(train("--config", tmp_path / "none.toml"), "none.toml")


def test_settings_file_that_is_no_toml(train: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("network_dim: 4\n", encoding="utf-8")
    refused(train("--config", tmp_path / "bad.toml"), "bad.toml", "TOML")


def test_no_name(train: Callable) -> None:
    refused(train(output_name=""), "output_name")


def test_unwritable_output(train: Callable, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be", encoding="utf-8")
    refused(train(output_dir=tmp_path / "occupied" / "networks"), "occupied", "cannot be written to")


def test_checkpoint_that_is_missing(train: Callable, tmp_path: Path) -> None:
    refused(train("--checkpoint", tmp_path / "gone.safetensors"), "gone.safetensors")


def test_checkpoint_that_is_no_checkpoint(train: Callable, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("once upon a time there was a checkpoint", encoding="utf-8")
    refused(train("--checkpoint", tmp_path / "text.safetensors"), "text.safetensors", "no safetensors file")


def test_truncated_checkpoint(train: Callable, tmp_path: Path, tiny_checkpoint_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes(tiny_checkpoint_path.read_bytes()[:1_000_000])
    refused(train("--checkpoint", tmp_path / "half.safetensors"), "half.safetensors", "cut off")


def test_network_given_as_checkpoint(train: Callable, command: Callable, tmp_path: Path) -> None:
    assert train().code == 0
    network = tmp_path / "home" / "models" / "Lora" / "net.safetensors"
    refused(
        command("generate", "--checkpoint", network, "--home", tmp_path / "home", "--prompt", "a"), "net.safetensors"
    )


def test_unknown_tag_name_is_told_and_the_picture_is_made(
    command: Callable, tiny_checkpoint_path: Path, tmp_path: Path
) -> None:
    where = ("--checkpoint", tiny_checkpoint_path, "--home", tmp_path / "home", "--out", tmp_path / "images")
    size = ("--width", 64, "--height", 64, "--steps", 1, "--seed", 3)
    done = command("generate", *where, *size, "--prompt", "a circle <lora:nobody:1>")
    assert done.code == 0
    assert "warning: " in done.err and "nobody" in done.err and "Traceback" not in done.err
    assert len(list((tmp_path / "images").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--width", 63), ("--width", "'63'", "a multiple of 8")),
        (("--steps", "many"), ("--steps", "'many'", "whole number")),
        (("--cfg-scale", "nan"), ("--cfg-scale", "'nan'")),
        (("--batch", 0), ("--batch", "'0'", "from 1 to 64")),
        (("--sampler", "Magic"), ("'Magic'", "Euler a")),
        (("--colour", "red"), ("--colour",)),
    ],
)
def test_generate_refuses(
    command: Callable, tiny_checkpoint_path: Path, tmp_path: Path, options: tuple, words: tuple[str, ...]
) -> None:
    where = ("--checkpoint", tiny_checkpoint_path, "--home", tmp_path / "home")
    refused(command("generate", *where, "--prompt", "a circle", *options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--network", "nobody"), ("nobody",)),
        ((), ("--network NAME",)),
        (("--network", "x", "--weights", "much"), ("much",)),
        (("--network", "x", "--epochs", "0-"), ("0-",)),
        (("--network", "x", "--out", "grid.jpg"), ("grid.jpg", ".png")),
    ],
)
def test_grid_refuses(
    command: Callable, tiny_checkpoint_path: Path, tmp_path: Path, options: tuple, words: tuple[str, ...]
) -> None:
    where = ("--checkpoint", tiny_checkpoint_path, "--home", tmp_path / "home")
    refused(command("grid", *where, "--prompt", "a circle", *options), *words)


def test_inspect_refuses_what_is_no_tensor_file(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "note.safetensors").write_text("short", encoding="utf-8")
    refused(command("inspect", tmp_path / "note.safetensors"), "note.safetensors")
    refused(command("inspect", tmp_path / "gone.safetensors"), "gone.safetensors", "give the path of its file")


def test_export_refuses_a_folder_that_is_no_webui(command: Callable, tmp_path: Path) -> None:
    refused(command("export-demo", tmp_path), "no webui.py")
    refused(command("export-demo", tmp_path / "nowhere"), "no such folder")


def test_unknown_command_and_none(command: Callable) -> None:
    refused(command("paint"), "'paint'", "generate")
    refused(command(), "COMMAND")


def test_a_real_process_tells_it_the_same_way(tmp_path: Path) -> None:
    """Through `python -m lora_ext`, from another folder."""
    arguments = ["train", "--set", "network_dim=0", "--set", "output_name=a?b"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "lora_ext", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 2 problems in the settings:")
    assert "network_dim" in done.stderr and "output_name" in done.stderr and "Traceback" not in done.stderr
