"""Networks that act in some sampling steps only, with every sampler of a real WebUI."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from network_files import Networks, difference, weights_of
from PIL import Image

pytestmark = pytest.mark.webui

PROMPT = "a red star"
MIDDLE = "<lora:w2-s:1:step=2-4>"
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}

ONE_CALL = "..##.."
TWO_CALLS = "....####..."  # the last step ends at no noise, and needs one call
CALLS = {
    "DPM++ 2M": ONE_CALL,
    "DPM++ SDE": TWO_CALLS,
    "DPM++ 2M SDE": ONE_CALL,
    "DPM++ 2M SDE Heun": ONE_CALL,
    "DPM++ 2S a": TWO_CALLS,
    "DPM++ 3M SDE": ONE_CALL,
    "Euler a": ONE_CALL,
    "Euler": ONE_CALL,
    "LMS": ONE_CALL,
    "Heun": TWO_CALLS,
    "DPM2": TWO_CALLS,
    "DPM2 a": TWO_CALLS,
    "DPM fast": ONE_CALL,  # six calls in three steps of its own: the WebUI's steps are calls here
    "Restart": TWO_CALLS,
    "DDIM": "..##..",
    "DDIM CFG++": "..##..",
    "PLMS": "...##..",  # two calls in the first step
    "UniPC": "..##...",  # of 1000 // 6 timesteps it makes seven steps
    "LCM": ONE_CALL,
}


@pytest.fixture
def network(webui: Any, networks: Path) -> Iterator[Networks]:
    """A LoRA `w2-s` of the U-Net and the text encoder, and the probe watching a weight of the U-Net."""
    webui.set_options(lora_workshop_tags="LoRA Workshop")
    files = Networks(networks, weights_of(Path(webui.call("/sdapi/v1/sd-models")[0]["filename"])))
    files.write("w2-s", 1)
    webui.call("/lw-probe/tags/watch", {})
    yield files
    webui.call("/lw-probe/tags/watch", {})


def calls(webui: Any) -> str:
    """`#` for each call of the model with the network in the U-Net, `.` for each without, since it was last asked."""
    seen: str = webui.call("/lw-probe/tags/calls")["calls"]
    return seen


def test_every_sampler_of_the_webui(webui: Any, network: Networks) -> None:
    names = [each["name"] for each in webui.call("/sdapi/v1/samplers")]
    assert set(names) == {*CALLS, "DPM adaptive"}
    seen = {}
    for name in names:
        webui.generate(f"{PROMPT} {MIDDLE}", steps=6, sampler_name=name, width=64, height=64)
        seen[name] = calls(webui)
    adaptive = seen.pop("DPM adaptive")
    assert adaptive == "......######" + "." * (len(adaptive) - 12)  # three calls in each step that it tries
    assert len(adaptive) % 3 == 0
    assert seen == CALLS


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "..##.."),
        ({"n_iter": 2, "batch_size": 2}, "..##....##.."),
        ({**HIRES, "hr_second_pass_steps": 3}, "..##....#"),
        ({**HIRES, "hr_prompt": f"{PROMPT} <lora:w2-s:1:start=5>"}, "..##.......#"),
    ],
    ids=["plain", "batches", "hires fix", "hires fix with another tag"],
)
def test_steps_are_counted_in_each_pass(webui: Any, network: Networks, fields: dict[str, Any], expected: str) -> None:
    webui.generate(f"{PROMPT} {MIDDLE}", steps=6, width=64, height=64, **fields)
    assert calls(webui) == expected


def test_img2img_counts_the_steps_that_it_makes(webui: Any, network: Networks) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    start = {"init_images": [base64.b64encode(buffer.getvalue()).decode()], "denoising_strength": 0.5}
    webui.generate(f"{PROMPT} {MIDDLE}", "/sdapi/v1/img2img", steps=8, width=64, height=64, **start)
    assert calls(webui) == "..##."


def test_pictures(webui: Any, network: Networks) -> None:
    """All steps are the tag without steps, none is the text encoder's part alone, half is neither; nothing stays."""
    base = webui.generate(PROMPT).pictures[0]
    whole, text = (webui.generate(f"{PROMPT} <lora:w2-s:{each}>").pictures[0] for each in ("1", "1:0"))
    assert (webui.generate(f"{PROMPT} <lora:w2-s:1:stop=99>").pictures[0] == whole).all()
    assert (webui.generate(f"{PROMPT} <lora:w2-s:1:start=99>").pictures[0] == text).all()
    half = webui.generate(f"{PROMPT} <lora:w2-s:1:stop=2>")
    assert min(difference(half.pictures[0], each) for each in (base, whole, text)) > 0.5
    assert "<lora:w2-s:1:stop=2>" in half.infotexts[0] and 'Lora hashes: "w2-s: ' in half.infotexts[0]
    handed_over = webui.generate(f"{PROMPT} <lora:w2-s:1:0.5:stop=2><lora:w2-s:1:0.5:start=2>").pictures[0]
    assert (handed_over == webui.generate(f"{PROMPT} <lora:w2-s:2:0.5>").pictures[0]).all()
    assert (webui.generate(PROMPT).pictures[0] == base).all()


def test_an_interrupted_picture_leaves_nothing(webui: Any, network: Networks) -> None:
    base = webui.generate(PROMPT).pictures[0]
    webui.call("/lw-probe/tags/watch", {"stop_after": 2})
    webui.generate(f"{PROMPT} <lora:w2-s:1:stop=4>", steps=8)
    assert calls(webui) == "##"
    webui.call("/lw-probe/tags/watch", {})
    assert (webui.generate(PROMPT).pictures[0] == base).all()
    assert calls(webui) == "...."


def test_where_weights_cannot_be_changed_the_picture_is_ended_and_told(webui: Any, network: Networks) -> None:
    base = webui.generate(PROMPT).pictures[0]
    webui.call("/lw-probe/tags/fail-at-step", {"step": 2})
    webui.call("/lw-probe/tags/watch", {})
    webui.generate(f"{PROMPT} <lora:w2-s:1:stop=4>", steps=8)
    assert calls(webui) == "##."
    assert "the picture was ended: injected between steps" in webui.call("/lw-probe/tags/comments")[0]
    assert (webui.generate(PROMPT).pictures[0] == base).all()


def test_a_refiner_goes_on_in_the_same_step(webui: Any, network: Networks, other_checkpoint: str) -> None:
    """Here in an instance of its own: the network moves there in the middle of its steps."""
    fields = {"refiner_checkpoint": other_checkpoint, "refiner_switch_at": 0.5}
    for tag, expected in (("<lora:w2-s:1>", "######"), ("<lora:w2-s:1:step=2-5>", "..###.")):
        webui.generate(f"{PROMPT} {tag}", steps=6, **fields)
        assert calls(webui) == expected


def test_epochs_and_block_weights(webui: Any, network: Networks) -> None:
    network.write("w2-s-000001", 2)
    first = webui.generate(f"{PROMPT} <lora:w2-s-000001:1>").pictures[0]
    by_epoch = webui.generate(f"{PROMPT} <lora:w2-s:1:epoch=1>")
    assert (by_epoch.pictures[0] == first).all()
    assert "w2-s-000001: " in by_epoch.infotexts[0]
    base = webui.generate(PROMPT).pictures[0]
    assert (webui.generate(f"{PROMPT} <lora:w2-s:1:epoch=4>").pictures[0] == base).all()
    comments = webui.call("/lw-probe/tags/comments")
    assert comments == ["<lora:w2-s:1:epoch=4> is left out: w2-s has no file of epoch 4: there are 1, and last"]
    webui.set_options(lora_workshop_block_presets="TEXT:1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0")
    text = webui.generate(f"{PROMPT} <lora:w2-s:1:0>").pictures[0]
    assert (webui.generate(f"{PROMPT} <lora:w2-s:1:lbw=TEXT>").pictures[0] == text).all()
    webui.set_options(lora_workshop_block_presets="")
    assert (webui.generate(f"{PROMPT} <lora:w2-s:1:lbw=TEXT>").pictures[0] == base).all()
    assert "'TEXT' is no preset" in webui.call("/lw-probe/tags/comments")[0]


def test_the_builtin_is_said_not_to_know_them(webui: Any, network: Networks) -> None:
    webui.set_options(lora_workshop_tags="built-in")
    webui.generate(f"{PROMPT} {MIDDLE}", steps=2)
    webui.set_options(lora_workshop_tags="LoRA Workshop")
    assert "mean nothing to the built-in" in webui.call("/lw-probe/tags/comments")[0]
