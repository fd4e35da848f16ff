"""Networks in regions of the picture, in a real WebUI."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_files import ATTENTION, CONVOLUTIONS, Networks, difference, weights_of
from PIL import Image

pytestmark = pytest.mark.webui

PROMPT = "a red star <lora:w2-r:0.8>"
MOST = 0.1  # mean difference of two pictures that are the same, in units of 1/255
WHOLE, LEFT = [[1.0, 1.0]], [[1.0, 0.0]]
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}


@pytest.fixture
def network(webui: Any, networks: Path) -> Iterator[Networks]:
    """A LoCon `w2-r` of the U-Net and the text encoder; masks are given up after the test."""
    webui.set_options(lora_workshop_tags="LoRA Workshop")
    files = Networks(networks, weights_of(Path(webui.call("/sdapi/v1/sd-models")[0]["filename"])))
    files.write("w2-r", 1, ATTENTION + CONVOLUTIONS)
    yield files
    webui.call("/lw-probe/tags/regions", {})
    webui.set_options(batch_cond_uncond=True, token_merging_ratio=0.0)


def set_masks(webui: Any, **masks: list[list[float]]) -> None:
    webui.call("/lw-probe/tags/regions", {name.replace("_", "-"): mask for name, mask in masks.items()})


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batches": {"batch_size": 2, "n_iter": 2},
    "hires fix": HIRES,
    "odd latents": {"width": 72, "height": 56},
    "two calls a step": {"sampler_name": "Heun"},
    "long prompt": {"prompt": PROMPT + " and a house" * 30},
}


@pytest.mark.parametrize("case", CASES)
def test_a_mask_over_everything_is_the_plain_tag(webui: Any, network: Networks, case: str) -> None:
    fields = {"prompt": PROMPT, **CASES[case]}
    plain = webui.generate(**fields).pictures
    set_masks(webui, w2_r=WHOLE)
    masked = webui.generate(**fields).pictures
    assert max(map(difference, plain, masked)) < MOST


def test_conditions_one_after_the_other(webui: Any, network: Networks) -> None:
    webui.set_options(batch_cond_uncond=False)
    plain = webui.generate(PROMPT).pictures[0]
    set_masks(webui, w2_r=WHOLE)
    assert difference(webui.generate(PROMPT).pictures[0], plain) < MOST


def test_img2img(webui: Any, network: Networks) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), "red").save(buffer, "PNG")
    start = {"init_images": [base64.b64encode(buffer.getvalue()).decode()], "denoising_strength": 0.8}
    plain = webui.generate(PROMPT, "/sdapi/v1/img2img", **start).pictures[0]
    set_masks(webui, w2_r=WHOLE)
    assert difference(webui.generate(PROMPT, "/sdapi/v1/img2img", **start).pictures[0], plain) < MOST


def test_a_region_of_the_picture(webui: Any, network: Networks) -> None:
    """A network of the last convolutions changes its half; all is as before afterwards."""
    network.write("w2-l", 3, ("_up_blocks_3_resnets_2_conv2", "_up_blocks_3_resnets_2_conv1"))
    prompt = "a red star <lora:w2-l:1>"
    base, whole = (webui.generate(each, steps=2).pictures[0] for each in ("a red star", prompt))
    set_masks(webui, w2_l=LEFT)
    left = webui.generate(prompt, steps=2)
    changes = np.abs(left.pictures[0].astype(int) - base.astype(int)).mean((0, 2))  # by column
    assert changes[:48].mean() > 3 * changes[80:].mean()
    assert difference(left.pictures[0], whole) > 0.5
    assert "w2-l: " in left.infotexts[0].split("Lora hashes")[1]
    assert (webui.generate("a red star", steps=2).pictures[0] == base).all()
    set_masks(webui)
    assert (webui.generate(prompt, steps=2).pictures[0] == whole).all()


def test_two_networks_side_by_side(webui: Any, network: Networks) -> None:
    """A mask of halves for each is not what either is alone; with steps too."""
    network.write("w2-q", 2, ATTENTION + CONVOLUTIONS)
    prompt = f"{PROMPT} <lora:w2-q:0.8>"
    both = webui.generate(prompt).pictures[0]
    set_masks(webui, w2_r=LEFT, w2_q=[[0.0, 1.0]])
    halves = webui.generate(prompt).pictures[0]
    assert difference(both, halves) > 0.5
    unscheduled = webui.generate(prompt.replace(":0.8>", ":0.8:stop=99>")).pictures[0]
    assert (unscheduled == halves).all()
    assert difference(webui.generate(prompt.replace(":0.8>", ":0.8:stop=2>")).pictures[0], halves) > 0.5


def test_what_does_not_go_with_masks_is_told(webui: Any, network: Networks) -> None:
    webui.set_options(token_merging_ratio=0.5)
    set_masks(webui, w2_r=LEFT)
    with pytest.raises(RuntimeError, match="region masks do not go with .* switch token merging and HyperTile off"):
        webui.generate(PROMPT)
    webui.set_options(token_merging_ratio=0.0)
    set_masks(webui)
    base = webui.generate("a red star").pictures[0]
    assert (webui.generate("a red star").pictures[0] == base).all()
