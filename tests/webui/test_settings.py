"""Trainings with many settings at once in a real WebUI: what they draw and merge, measure, keep and go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from runs import API, ended, start

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = pytest.mark.webui

NAME = "lw-test-settings"
MANY: dict[str, Any] = {
    "network_dim": 4, "conv_dim": 2, "conv_alpha": 2, "network_dropout": 0.1, "rank_dropout": 0.1,
    "module_dropout": 0.1, "scale_weight_norms": 1.0, "ema_decay": 0.9, "loraplus_lr_ratio": 4,
    "lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2, "lr_warmup_steps": 1,
    "shuffle_caption": True, "keep_tokens": 1, "flip_aug": True,
    "caption_dropout_rate": 0.1, "gradient_accumulation_steps": 2, "noise_offset": 0.05, "ip_noise_gamma": 0.1,
    "multires_noise_iterations": 3, "loss_type": "huber", "gradient_checkpointing": True, "max_train_epochs": 3,
    "save_precision": "float", "save_state": True,
}  # fmt: skip


def header(path: Path) -> dict[str, Any]:
    """The metadata of a network file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata: dict[str, Any] = json.loads(file.read(length))["__metadata__"]
    return metadata


def messages(webui: WebUI, run: str) -> list[str]:
    return [each["text"] for each in webui.call(f"{API}/status?run={run}")["messages"]]


def test_a_run_that_goes_on_from_its_state_ends_as_the_whole_one(
    webui: WebUI, dataset: Path, networks: Path, tmp_path: Path
) -> None:
    before = webui.generate("a house").pictures[0]
    whole = start(webui, dataset, NAME, **MANY, output_dir=str(networks))
    assert ended(webui, whole)["state"] == "finished"
    state = tmp_path / "state"
    shutil.copytree(networks / f"{NAME}-000001-state", state)
    wanted = header(networks / f"{NAME}.safetensors")["sshs_model_hash"]
    (networks / f"{NAME}.safetensors").unlink()
    rest = start(webui, dataset, NAME, **MANY, output_dir=str(networks), resume=str(state))
    assert ended(webui, rest)["state"] == "finished"
    assert header(networks / f"{NAME}.safetensors")["sshs_model_hash"] == wanted
    assert np.array_equal(webui.generate("a house").pictures[0], before)


def test_class_pictures_are_drawn_by_the_webui(webui: WebUI, dataset: Path, networks: Path, tmp_path: Path) -> None:
    before = webui.generate("a house").pictures[0]
    options = webui.call("/sdapi/v1/options")
    values = {"reg_data_dir": str(tmp_path / "class"), "class_prompt": "a circle", "num_class_images": 2}
    run = start(webui, dataset, NAME, **values, prior_prediction_weight=1.0, output_dir=str(networks))
    assert ended(webui, run)["state"] == "finished"
    drawn = sorted((tmp_path / "class").rglob("*.png"))
    assert len(drawn) == 2 and all(Image.open(path).size == (64, 64) for path in drawn)
    assert header(networks / f"{NAME}.safetensors")["ss_num_reg_images"] == "2"
    assert np.array_equal(webui.generate("a house").pictures[0], before)
    assert webui.call("/sdapi/v1/options") == options


def test_a_run_on_a_network_beside_another_one_is_measured(
    webui: WebUI, dataset: Path, networks: Path, tmp_path: Path
) -> None:
    """`base_weights` is in the base while the run lasts only; `network_weights` is what it begins with."""
    first = start(webui, dataset, f"{NAME}-first", output_dir=str(networks), learning_rate=1e-2)
    assert ended(webui, first)["state"] == "finished"
    before = webui.generate("a house").pictures[0]
    tagged = webui.generate(f"a house <lora:{NAME}-first:1>").pictures[0]
    file = str(networks / f"{NAME}-first.safetensors")
    values: dict[str, Any] = {"network_weights": file, "base_weights": file, "base_weights_multiplier": "0.5"}
    values |= {"validation_split": 0.4, "cache_latents_to_disk": True, "prediction_type": "epsilon"}
    run = start(webui, dataset, NAME, **values, output_dir=str(networks))
    record = ended(webui, run)
    assert record["state"] == "finished" and record["best_epoch"] in (1, 2)
    metadata = header(networks / f"{NAME}.safetensors")
    assert float(metadata["lw_best_validation_loss"]) > 0
    assert metadata["ss_num_train_images"] == "2"  # one of three is held out
    assert np.array_equal(webui.generate("a house").pictures[0], before)
    assert np.array_equal(webui.generate(f"a house <lora:{NAME}-first:1>").pictures[0], tagged)


def test_what_cannot_be_is_told_before_anything_is_touched(webui: WebUI, dataset: Path, networks: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        start(webui, dataset, NAME, optimizer_type="AdamV", min_timestep=900, max_timestep=100, conv_dim=0)
    text = str(refused.value)
    assert "conv_dim = 0: allowed is a whole number from 1 to 1024" in text and "min_timestep" in text
    with pytest.raises(RuntimeError, match="optimizer_type = 'AdamV'"):
        start(webui, dataset, NAME, optimizer_type="AdamV")
    assert not list(networks.iterdir())
