"""A checkpoint of SD1's real size with random weights in the WebUI: tags against the built-in, and a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from network_files import ATTENTION, CONVOLUTIONS, Networks, difference, weights_of
from runs import draw_dataset, ended, start

from lora_ext.demo.webui_export import write_text_encoder_folder
from lora_ext.host.standalone.checkpoint_yaml import checkpoint_yaml
from lora_ext.host.standalone.random_checkpoint import write_random_checkpoint
from lora_ext.host.standalone.unet import SD1_UNET
from lora_ext.host.standalone.vae import VAEConfig

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = pytest.mark.webui_full

NAME = "lw-test-full"
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TIMES = 5
MOST = 0.1  # mean difference of two pictures that are the same, in units of 1/255


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def full_size(request: pytest.FixtureRequest, webui: WebUI) -> Iterator[Path]:
    """The checkpoint, loaded in the WebUI: 4.3 GB in fp32, 2.1 GB in fp16, removed afterwards."""
    folder = webui.folder / "models" / "Stable-diffusion"
    path, text_folder = folder / f"{NAME}-{request.param}.safetensors", folder / f"{NAME}-text-encoder"
    before = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    dtype = torch.float16 if request.param == "fp16" else torch.float32
    try:
        write_random_checkpoint(path, SD1_UNET, VAEConfig(), TEXT, dtype)
        text_folder.mkdir(exist_ok=True)
        write_text_encoder_folder(text_folder, {"vocab_size": 49408, "max_position_embeddings": 77, **TEXT})
        described = checkpoint_yaml(SD1_UNET, VAEConfig(), text_heads=12, text_folder=text_folder.as_posix())
        path.with_suffix(".yaml").write_text(described, encoding="utf-8")
        webui.call("/sdapi/v1/refresh-checkpoints", {})
        webui.set_options(sd_model_checkpoint=path.stem)
        yield path
    finally:
        webui.set_options(sd_model_checkpoint=before)
        for made in [*folder.glob(f"{NAME}-*.*"), *text_folder.iterdir()]:
            made.unlink()
        text_folder.rmdir()
        webui.call("/sdapi/v1/refresh-checkpoints", {})


@pytest.fixture
def files(full_size: Path, networks: Path) -> None:
    """A LoRA and a LoCon of rank 16 for it."""
    files = Networks(networks, weights_of(full_size))
    files.write(f"{NAME}-lora", 1, rank=16)
    files.write(f"{NAME}-locon", 2, ATTENTION + CONVOLUTIONS, rank=16)


def test_switching_weights_and_pictures_beside_the_builtin(webui: WebUI, files: None) -> None:
    """Another weight at least four times as fast, and the same picture."""
    small = {"width": 128, "height": 128, "steps": 2}
    for name in (f"{NAME}-lora", f"{NAME}-locon"):
        figures: dict[str, Any] = webui.call("/lw-probe/tags/switch", {"name": name, "times": TIMES})
        ours, theirs = (figures[who]["median"] for who in ("ours", "built-in"))
        print(f"{name}: {ours:.3f} s, built-in {theirs:.3f} s, {theirs / ours:.1f} times as fast")
        assert theirs / ours >= 4, name
        picture = webui.generate(f"a star <lora:{name}:0.7>", **small).pictures[0]
        webui.set_options(lora_workshop_tags="built-in")
        try:
            assert difference(picture, webui.generate(f"a star <lora:{name}:0.7>", **small).pictures[0]) < MOST
        finally:
            webui.set_options(lora_workshop_tags="LoRA Workshop")


def test_a_training_leaves_everything_as_it_was(webui: WebUI, full_size: Path, tmp_path: Path) -> None:
    small = {"width": 128, "height": 128, "steps": 2}
    picture = webui.generate("a star", **small).pictures[0]
    before = webui.call("/lw-probe/state")
    run = start(webui, draw_dataset(tmp_path / "pictures"), NAME, max_train_epochs=1)
    record = ended(webui, run, seconds=600)
    try:
        assert record["state"] == "finished", record["error"]
        after = webui.call("/lw-probe/state")
        assert {key for key in before if before[key] != after[key]} == set()
        assert np.array_equal(webui.generate("a star", **small).pictures[0], picture)
    finally:
        for file in webui.networks.glob(f"{NAME}*.safetensors"):
            file.unlink()
