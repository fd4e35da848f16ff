"""The commands doing their work on a tiny checkpoint."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_ext.cli import COMMANDS, PASSES_ARGUMENTS_ON
from lora_ext.commands.grid import network_name
from lora_ext.commands.options import whole_number
from lora_ext.config.train_config import all_settings
from lora_ext.protocols import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"resolution": 64, "min_bucket_reso": 64, "network_dim": 4, "max_train_epochs": 2}


def assignments(**settings: object) -> list[str]:
    """`--set name=value` for each setting."""
    return [word for name, value in {**SMALL, **settings}.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture
def place(tiny_checkpoint_path: Path, tmp_path: Path) -> tuple[object, ...]:
    """The options that name the tiny checkpoint and a fresh home."""
    return "--checkpoint", tiny_checkpoint_path, "--home", tmp_path / "home"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in PASSES_ARGUMENTS_ON])
def test_every_command_explains_itself(command: Callable, name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: run.py {name} ")


def test_train_help_lists_every_setting(command: Callable) -> None:
    shown = command("train", "--help").out
    squeezed = re.sub(r"\s+", " ", shown)
    for declared in all_settings().values():
        assert f"\n  {declared.name} " in shown
        assert declared.help in squeezed
        assert declared.allowed() in squeezed
    assert "(default 0; " in shown  # a number is not told as false
    assert "(default none; " in shown


def test_from_pictures_to_a_grid(command: Callable, place: tuple, pictures: Path, tmp_path: Path) -> None:
    trained = command("train", *place, *assignments(train_data_dir=pictures, output_name="net"), "--json")
    assert trained.code == 0
    events = [json.loads(line) for line in trained.out.splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
    folder = tmp_path / "home" / "models" / "Lora"
    assert sorted(path.name for path in folder.iterdir()) == ["net-000001.safetensors", "net.safetensors"]

    size = ("--width", 64, "--height", 64, "--steps", 2, "--seed", 7)
    made = command(
        "generate",
        *place,
        *size,
        "--prompt",
        "a plain one <lora:net:1>",
        "--batch",
        2,
        "--out",
        tmp_path / "images",
        "--json",
    )
    images = json.loads(made.out)
    assert [each["seed"] for each in images["images"]] == [7, 8]
    assert images["messages"] == []
    assert "Lora hashes" in images["images"][0]["infotext"]

    grid = tmp_path / "sheets" / "grid.png"
    done = command(
        "grid", *place, *size, "--prompt", "a plain one", "--network", "net", "--weights", "0.5, 1", "--out", grid
    )
    assert done.code == 0 and done.out.strip() == str(grid)
    with Image.open(grid) as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 2 * 64

    facts = json.loads(command("inspect", folder / "net.safetensors", "--json").out)
    assert (facts["kind"], facts["unet_modules"], facts["ranks"]) == ("network", 192, {"4": 204})
    assert facts["metadata"]["ss_network_dim"] == "4"


def test_inspect_tells_a_checkpoint(command: Callable, tiny_checkpoint_path: Path) -> None:
    facts = json.loads(command("inspect", tiny_checkpoint_path, "--json").out)
    assert (facts["kind"], facts["architecture"], facts["unet_channels"]) == ("checkpoint", "SD1", 32)
    assert command("inspect", tiny_checkpoint_path).out.count("\n") >= 7


def test_inspect_tells_what_a_network_of_another_program_holds(command: Callable, tmp_path: Path) -> None:
    tensors = {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 4),
        "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(3, 2),
        "unet.mid_block.attentions.0.proj_out.lora_A.weight": torch.ones(2, 4),
        "bundle_emb.<cat>.clip_l": torch.ones(1, 8),
        "transformer.x_embedder.lora_A.weight": torch.ones(2, 4),
    }
    torch.save(tensors, tmp_path / "net.pt")
    facts = json.loads(command("inspect", tmp_path / "net.pt", "--json").out)
    assert (facts["kind"], facts["written_in_names_of"], facts["unet_modules"]) == ("network", "diffusers", 2)
    assert (facts["algorithms"], facts["ranks"], facts["embeddings"]) == ({"LoRA": 1}, {"2": 1}, ["<cat>"])
    assert facts["not_understood"] == ["transformer.x_embedder.lora_A.weight"]
    assert facts["damaged"] == {
        "lora_unet_mid_block_attentions_0_proj_out": "lora_up.weight missing: the file is damaged, get it again"
    }


def test_plan_writes_no_network(command: Callable, place: tuple, pictures: Path, tmp_path: Path) -> None:
    done = command("train", *place, *assignments(train_data_dir=pictures, output_name="net"), "--plan", "--json")
    plan = json.loads(done.out)
    assert (plan["pictures"], plan["steps"], plan["epochs"]) == (2, 4, 2)
    assert [Path(file).name for file in plan["files"]] == ["net-000001.safetensors", "net.safetensors"]
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_what_the_record_tells_of_a_run_holds_in_every_folder(
    command: Callable, place: tuple, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("train", *place, *assignments(train_data_dir=pictures, output_name="net", output_dir="out"), "--plan")
    assert Path(json.loads(command(*asked, "--json").out)["files"][0]).parent == (tmp_path / "out").resolve()


def test_what_the_device_cannot_do_is_told_before_a_run_is_entered(
    command: Callable, place: tuple, pictures: Path, tmp_path: Path
) -> None:
    wanted = assignments(train_data_dir=pictures, output_name="net", mixed_precision="fp16")
    done = command("train", *place, "--device", "cpu", *wanted)
    assert done.code and "mixed_precision = fp16: allowed on" in done.err
    assert not list((tmp_path / "home").rglob("run.json"))


def test_plan_tells_every_warning(command: Callable, place: tuple, pictures: Path) -> None:
    (pictures / "lonely.png").write_bytes(next(pictures.rglob("*.png")).read_bytes())
    asked = ("train", *place, *assignments(train_data_dir=pictures, output_name="net"), "--plan")
    warnings = json.loads(command(*asked, "--json").out)["warnings"]
    assert warnings
    assert [line for line in command(*asked).out.splitlines() if line.startswith("warning: ")] == [
        f"warning: {warning}" for warning in warnings
    ]


def test_shown_settings_are_a_file_that_gives_them_again(command: Callable, tmp_path: Path) -> None:
    shown = command("train", *assignments(output_name="net", unet_lr="1e-4"), "--show-config").out
    (tmp_path / "run.toml").write_text(shown, encoding="utf-8")
    assert command("train", "--config", tmp_path / "run.toml", "--show-config").out == shown
    assert "network_dim = 4\n" in shown and "unet_lr = 0.0001\n" in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_stops_and_keeps_what_is_trained(pictures: Path, tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    """A real process, interrupted after its first step."""
    settings = assignments(
        train_data_dir=pictures, output_name="net", max_train_epochs=1000, save_every_n_epochs="none"
    )
    where = ["--checkpoint", str(tiny_checkpoint_path), "--home", str(tmp_path / "home"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-m", "lora_ext", "train", *where, *settings],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    for line in program.stdout:
        if json.loads(line)["event"] == "step":
            program.send_signal(signal.SIGINT)
            break
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert "keeping what is trained" in err and "Traceback" not in err
    assert [path.name for path in (tmp_path / "home" / "models" / "Lora").iterdir()] == ["net.safetensors"]
    assert len(out.splitlines()) < 200


def test_network_of_a_prompt() -> None:
    assert network_name("a cat <lora:tabby:0.8> sitting", None) == "tabby"
    assert network_name("a cat <lora:tabby:0.8>", "other") == "other"
    assert network_name("a cat <lora:tabby:1:lbw=A_PRESET_OF_MY_OWN> <lora:tabby:1>", None) == "tabby"
    with pytest.raises(UserError, match="tags of a, b"):
        network_name("<lora:a:1> <lora:b:1>", None)


def test_whole_numbers() -> None:
    assert whole_number(-1, 10)("-1") == -1
    assert whole_number(8, 64, multiple_of=8)("16") == 16
