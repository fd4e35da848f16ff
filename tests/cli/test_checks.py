"""Checking and repairing from the command line: verdicts, exit codes, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from lora_ext.networks.file import write_network

KEY = "lora_unet_mid_block_attentions_0_proj_in"


def test_a_damaged_file_is_told_by_the_exit_code_and_repaired(command: Callable, tmp_path: Path) -> None:
    tensors = {
        f"{key}.lora_{way}.weight": torch.full((4, 4), 0.1) for key in (KEY, f"{KEY[:-2]}out") for way in ("up", "down")
    }
    tensors |= {f"{key}.alpha": torch.tensor(4.0) for key in (KEY, f"{KEY[:-2]}out")}
    whole, damaged, fixed = (tmp_path / f"{name}.safetensors" for name in ("whole", "damaged", "fixed"))
    write_network(whole, tensors, {}, "float")
    tensors[f"{KEY}.lora_up.weight"] = torch.full((4, 4), float("nan"))
    write_network(damaged, tensors, {}, "float")

    told = command("check", whole)
    assert told.code == 0 and "whole.safetensors: healthy" in told.out
    told = command("check", whole, damaged, "--json")
    assert told.code == 1
    verdicts = [(Path(each["file"]).name, each["verdict"]) for each in json.loads(told.out)["checked"]]
    assert verdicts == [("whole.safetensors", "healthy"), ("damaged.safetensors", "damaged")]

    assert command("repair", damaged, "--out", fixed, "--preview").code == 0 and not fixed.exists()
    assert command("repair", damaged, "--out", fixed).code == 0
    assert command("check", fixed).code == 0
    assert command("metadata", fixed, "--set", "ss_output_name=fixed", "--remove", "ss_training_comment").code == 0
    assert json.loads(command("inspect", fixed, "--json").out)["metadata"]["ss_output_name"] == "fixed"
    assert command("check", fixed).code == 0
