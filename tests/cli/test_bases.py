"""`train` and `generate` on the other bases, with samples on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ext.networks.file import scan_network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sd2-v", {"ss_base_model_version": "sd_v2_v", "modelspec.architecture": "stable-diffusion-v2-768-v/lora"}),
        (
            "sdxl",
            {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
        ),
    ],
)
def test_trained_sampled_and_drawn(
    name: str, told: dict[str, str], command: Callable, pictures: Path, tiny_kind_path: Callable[[str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    home = tmp_path / "home"
    place = ("--checkpoint", tiny_kind_path(name), "--home", home, "--device", "cpu")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a plain one --w 64 --h 64 --s 2 --d 1", encoding="utf-8")
    values = {
        "train_data_dir": pictures, "output_name": "net", "resolution": 64, "min_bucket_reso": 32, "network_dim": 2,
        "learning_rate": 0.05, "max_train_epochs": 1, "sample_prompts": prompts, "sample_every_n_epochs": 1,
        "sample_at_first": "true",
    }  # fmt: skip
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    trained = command("train", *place, *settings, "--json")
    assert trained.code == 0, trained.err
    events = [json.loads(line) for line in trained.out.splitlines()]
    assert [event["step"] for event in events if event["event"] == "sampled"] == [0, 2]
    first, last = (path.read_bytes() for path in sorted((home / "runs").rglob("*.png")))
    assert first != last
    metadata = scan_network(home / "models" / "Lora" / "net.safetensors").metadata
    assert {key: metadata[key] for key in told} == told

    drawn = []
    for prompt in ("a plain one <lora:net:1>", "a plain one"):
        size = ("--width", 64, "--height", 64, "--steps", 2, "--seed", 7)
        made = command("generate", *place, "--prompt", prompt, *size, "--json")
        answer = json.loads(made.out)
        assert made.code == 0 and answer["messages"] == []
        drawn.append(Path(answer["images"][0]["file"]).read_bytes())
    assert drawn[0] != drawn[1]
