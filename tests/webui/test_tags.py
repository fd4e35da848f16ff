"""`<lora:…>` in a real WebUI: the same pictures as with its built-in Lora, and what the built-in gets wrong."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from network_files import ATTENTION, CONVOLUTIONS, Networks, difference, weights_of
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lora_ext.networks.file import model_hash, write_network

pytestmark = pytest.mark.webui

OPTION, OURS, BUILTIN = "lora_workshop_tags", "LoRA Workshop", "built-in"
PROMPT = "a red star"
MOST = 0.1  # mean difference of two pictures that are the same, in units of 1/255
LEAST = 0.5  # mean difference of two pictures that are not


@pytest.fixture(scope="session")
def weights(webui: Any) -> dict[str, Tensor]:
    """The weights of the checkpoint that is loaded in the WebUI, by key in a network file."""
    return weights_of(Path(webui.call("/sdapi/v1/sd-models")[0]["filename"]))


@pytest.fixture
def files(networks: Path, weights: dict[str, Tensor]) -> Networks:
    """A LoRA `w2-a` and a LoCon `w2-b` in the WebUI's folder, and what writes more."""
    files = Networks(networks, weights)
    files.write("w2-a", 1)
    files.write("w2-b", 2, ATTENTION + CONVOLUTIONS)
    return files


@pytest.fixture(autouse=True)
def our_tags(webui: Any) -> Iterator[None]:
    """Tags are ours before and after each test."""
    usual = {OPTION: OURS, "sd_lora": "None", "lora_add_hashes_to_infotext": True}
    webui.set_options(**usual)
    yield
    webui.set_options(**usual)


HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
CASES = {
    "LoRA": ("<lora:w2-a:0.7>", {}),
    "LoRA, negative": ("<lora:w2-a:-0.5>", {}),
    "LoCon": ("<lora:w2-b:1>", {}),
    "LoCon, half": ("<lora:w2-b:0.5>", {}),
    "by alias": ("<lora:w2-a of the tests:1>", {}),
    "lyco": ("<lyco:w2-b:0.8>", {}),
    "two networks": ("<lora:w2-a:0.6><lora:w2-b:0.4>", {}),
    "te and unet": ("<lora:w2-a:0.2:1>", {}),
    "named": ("<lora:w2-a:te=1:unet=0.3>", {}),
    "fewer ranks": ("<lora:w2-a:1:1:2>", {}),
    "batch of 4": ("<lora:w2-a:0.8>", {"batch_size": 2, "n_iter": 2}),
    "hires fix": ("<lora:w2-a:0.8>", HIRES),
    "hires fix, another network": ("<lora:w2-a:0.8>", {**HIRES, "hr_prompt": f"{PROMPT} <lora:w2-b:0.9>"}),
    "hires fix, network there alone": ("", {**HIRES, "hr_prompt": f"{PROMPT} <lora:w2-b:0.9>"}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_pictures_as_the_builtin(webui: Any, files: Networks, case: str) -> None:
    tags, fields = CASES[case]
    prompt = f"{PROMPT} {tags}"
    ours = webui.generate(prompt, **fields)
    webui.set_options(**{OPTION: BUILTIN})
    theirs = webui.generate(prompt, **fields)
    without = webui.generate(PROMPT, **{key: value for key, value in fields.items() if key != "hr_prompt"})
    assert len(ours.pictures) == len(theirs.pictures) == len(without.pictures)
    assert max(map(difference, ours.pictures, theirs.pictures)) < MOST
    assert min(map(difference, ours.pictures, without.pictures)) > LEAST
    assert ours.infotexts == theirs.infotexts


def test_same_picture_as_the_builtin_in_img2img(webui: Any, files: Networks) -> None:
    buffer = io.BytesIO()
    Image.fromarray(webui.generate(PROMPT).pictures[0]).save(buffer, "PNG")
    start = {"init_images": [base64.b64encode(buffer.getvalue()).decode()], "denoising_strength": 0.8, "steps": 6}

    def render(prompt: str) -> np.ndarray:
        picture: np.ndarray = webui.generate(prompt, "/sdapi/v1/img2img", **start).pictures[0]
        return picture

    ours, without = render(f"{PROMPT} <lora:w2-b:0.9>"), render(PROMPT)
    webui.set_options(**{OPTION: BUILTIN})
    assert difference(ours, render(f"{PROMPT} <lora:w2-b:0.9>")) < MOST
    assert difference(ours, without) > LEAST


def test_without_tags_the_base_picture_comes_back_byte_for_byte(webui: Any, files: Networks) -> None:
    base = webui.generate(PROMPT).pictures[0]
    for option in (OURS, BUILTIN, OURS):
        webui.set_options(**{OPTION: option})
        assert difference(webui.generate(f"{PROMPT} <lora:w2-a:1><lora:w2-b:1>").pictures[0], base) > LEAST
    assert (webui.generate(PROMPT).pictures[0] == base).all()
    webui.set_options(**{OPTION: BUILTIN})
    webui.generate(f"{PROMPT} <lora:w2-a:1>")
    webui.set_options(**{OPTION: OURS})
    assert (webui.generate(PROMPT).pictures[0] == base).all()


def test_a_file_written_anew_takes_effect_at_once(webui: Any, files: Networks) -> None:
    prompt = f"{PROMPT} <lora:w2-a:1>"
    before = webui.generate(prompt)
    path = files.write("w2-a", 5)
    after = webui.generate(prompt)
    assert difference(before.pictures[0], after.pictures[0]) > LEAST
    assert f"w2-a: {model_hash(path)[:12]}" in after.infotexts[0]
    files.write("w2-c", 5)
    other_name = webui.generate(f"{PROMPT} <lora:w2-c:1>")
    assert (after.pictures[0] == other_name.pictures[0]).all()
    files.write("w2-a", 1)
    assert (webui.generate(prompt).pictures[0] == before.pictures[0]).all()


def test_a_changed_text_encoder_part_alone_takes_effect_at_once(webui: Any, files: Networks) -> None:
    prompt = f"{PROMPT} <lora:w2-d:1:0>"
    files.write("w2-d", 3, ("_fc1", "_fc2"))
    before = webui.generate(prompt).pictures[0]
    files.write("w2-d", 4, ("_fc1", "_fc2"))
    after = webui.generate(prompt).pictures[0]
    files.write("w2-e", 4, ("_fc1", "_fc2"))
    assert (after == webui.generate(f"{PROMPT} <lora:w2-e:1:0>").pictures[0]).all()
    assert (before != after).any()


def test_unknown_names_are_told_and_the_others_applied(webui: Any, files: Networks) -> None:
    known = webui.generate(f"{PROMPT} <lora:w2-a:1>")
    both = webui.generate(f"{PROMPT} <lora:no-such-network:1><lora:w2-a:1>")
    assert (known.pictures[0] == both.pictures[0]).all()
    assert "no-such-network" not in both.infotexts[0].split("Lora hashes")[1]
    assert webui.call("/lw-probe/tags/comments") == ["Lora not found: no-such-network"]


def test_a_multiplier_that_is_no_number_is_told(webui: Any, files: Networks) -> None:
    base = webui.generate(PROMPT)
    wrong = webui.generate(f"{PROMPT} <lora:w2-a:much>")
    assert (base.pictures[0] == wrong.pictures[0]).all()
    assert "te = 'much' is no number" in webui.call("/lw-probe/tags/comments")[0]


def test_the_same_name_twice_adds_up(webui: Any, files: Networks) -> None:
    twice = webui.generate(f"{PROMPT} <lora:w2-a:0.25><lora:w2-a:0.5>").pictures[0]
    assert (twice == webui.generate(f"{PROMPT} <lora:w2-a:0.75>").pictures[0]).all()


def test_the_default_network_of_the_settings(webui: Any, files: Networks) -> None:
    webui.call("/sdapi/v1/refresh-loras", {})
    base = webui.generate(PROMPT).pictures[0]
    webui.set_options(sd_lora="w2-a", extra_networks_default_multiplier=0.5)
    ours = webui.generate(PROMPT)
    webui.set_options(**{OPTION: BUILTIN})
    theirs = webui.generate(PROMPT)
    webui.set_options(**{OPTION: OURS, "sd_lora": "None"})
    assert difference(ours.pictures[0], theirs.pictures[0]) < MOST
    assert difference(ours.pictures[0], base) > LEAST
    assert "<lora:w2-a:0.5>" in ours.infotexts[0]
    assert (webui.generate(PROMPT).pictures[0] == base).all()


def test_hashes_only_where_the_settings_say_so(webui: Any, files: Networks) -> None:
    prompt = f"{PROMPT} <lora:w2-a:1>"
    assert "Lora hashes" in webui.generate(prompt).infotexts[0]
    webui.set_options(lora_add_hashes_to_infotext=False)
    assert "Lora hashes" not in webui.generate(prompt).infotexts[0]


def test_a_loha_is_applied_as_by_the_builtin(webui: Any, files: Networks) -> None:
    files.write_loha("w2-loha")
    base = webui.generate(PROMPT).pictures[0]
    prompt = f"{PROMPT} <lora:w2-a:0.5><lora:w2-loha:1>"
    ours = webui.generate(prompt)
    webui.set_options(**{OPTION: BUILTIN})
    theirs = webui.generate(prompt)
    webui.set_options(**{OPTION: OURS})
    assert difference(ours.pictures[0], theirs.pictures[0]) < MOST
    assert ours.infotexts == theirs.infotexts
    assert "w2-loha" in ours.infotexts[0].split("Lora hashes")[1]
    assert difference(ours.pictures[0], webui.generate(f"{PROMPT} <lora:w2-a:0.5>").pictures[0]) > LEAST
    assert (webui.generate(PROMPT).pictures[0] == base).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_dora_is_what_it_comes_to_in_whatever_order(webui: Any, files: Networks, axis: int) -> None:
    """Beside a LoRA; the built-in knows the second axis alone, and takes weights as changed by what stands before."""
    files.write_dora("w2-dora", axis)
    files.write_dora("w2-dora-whole", axis, whole=True)
    dora = webui.generate(f"{PROMPT} <lora:w2-dora:0.7><lora:w2-a:0.5>").pictures[0]
    assert (dora == webui.generate(f"{PROMPT} <lora:w2-a:0.5><lora:w2-dora:0.7>").pictures[0]).all()
    whole = webui.generate(f"{PROMPT} <lora:w2-a:0.5><lora:w2-dora-whole:0.7>").pictures[0]
    assert difference(dora, whole) < MOST
    assert difference(dora, webui.generate(f"{PROMPT} <lora:w2-a:0.5>").pictures[0]) > LEAST


def test_a_pickled_network_is_the_same_as_a_safetensors_one(webui: Any, files: Networks) -> None:
    path = files.write("w2-f", 6)
    torch.save(load_file(path), path.with_name("w2-pickled.pt"))
    pickled = webui.generate(f"{PROMPT} <lora:w2-pickled:0.8>").pictures[0]
    assert webui.call("/lw-probe/tags/comments") == []
    assert (pickled == webui.generate(f"{PROMPT} <lora:w2-f:0.8>").pictures[0]).all()


def test_what_a_file_has_that_nobody_knows_is_told(webui: Any, files: Networks) -> None:
    path = files.write("w2-g", 7)
    further = {"what.ever": torch.ones(1)}
    for suffix, shape in (("up", (4, 1)), ("down", (1, 4))):
        further |= {f"lora_unet_nowhere_{number}.lora_{suffix}.weight": torch.ones(shape) for number in range(5)}
    write_network(files.folder / "w2-h.safetensors", {**load_file(path), **further}, {}, "fp16")
    known = webui.generate(f"{PROMPT} <lora:w2-g:1>").pictures[0]
    assert (webui.generate(f"{PROMPT} <lora:w2-h:1>").pictures[0] == known).all()
    unknown, unmatched = webui.call("/lw-probe/tags/comments")
    assert "1 of its tensors are of no known network and are left out (what.ever)" in unknown
    assert "the checkpoint does not have 5 of its" in unmatched
    assert "lora_unet_nowhere_0, lora_unet_nowhere_1, lora_unet_nowhere_2, …" in unmatched


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "kind"])
def test_a_broken_file_is_told_and_the_others_are_applied(webui: Any, files: Networks, damage: str) -> None:
    path = files.write("w2-i", 8)
    tensors = load_file(path)
    name = sorted(key for key in tensors if key.endswith("lora_up.weight"))[-1]
    if damage == "shape":
        tensors[name] = tensors[name][:, :3]
    elif damage == "nan":
        tensors[name][0, 0] = float("nan")
    elif damage == "kind":
        tensors[name.replace("lora_up.weight", "mystery")] = torch.ones(2)
    write_network(path, tensors, {}, "fp16")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    known = webui.generate(f"{PROMPT} <lora:w2-a:1>")
    both = webui.generate(f"{PROMPT} <lora:w2-i:1><lora:w2-a:1>")
    assert (known.pictures[0] == both.pictures[0]).all()
    (comment,) = webui.call("/lw-probe/tags/comments")
    assert comment.startswith("w2-i is left out: ")
    assert "w2-i" not in both.infotexts[0].split("Lora hashes")[1]


def test_embeddings_that_come_with_a_network(webui: Any, files: Networks) -> None:
    """Known in prompts while the network is active, as with the built-in; a word like any other without it."""
    path = files.write("w2-j", 9, ("_to_q",))
    width = next(weight.shape[1] for key, weight in files.weights.items() if key.endswith("_fc1"))
    vector = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    bundled = {**load_file(path), "bundle_emb.w2star.string_to_param.*": vector}
    write_network(files.folder / "w2-k.safetensors", bundled, {}, "fp16")
    word = webui.generate("a red w2star <lora:w2-j:0.5>")
    ours = webui.generate("a red w2star <lora:w2-k:0.5>")
    after = webui.generate("a red w2star <lora:w2-j:0.5>")
    webui.set_options(**{OPTION: BUILTIN})
    theirs = webui.generate("a red w2star <lora:w2-k:0.5>")
    assert difference(ours.pictures[0], theirs.pictures[0]) < MOST
    assert "w2star: w2-k" in ours.infotexts[0]
    assert "w2star: w2-k" in theirs.infotexts[0]
    assert difference(ours.pictures[0], word.pictures[0]) > LEAST
    assert (after.pictures[0] == word.pictures[0]).all()


def test_weights_loaded_into_the_same_instance(webui: Any, files: Networks) -> None:
    """As a refiner or another checkpoint does it: what was patched is restored first, and applied to the new ones."""
    prompt = f"{PROMPT} <lora:w2-b:1>"
    base, with_network = webui.generate(PROMPT).pictures[0], webui.generate(prompt).pictures[0]
    assert webui.call("/lw-probe/tags/load-again", {})["tags"] == ["w2-b"]
    assert (webui.generate(prompt).pictures[0] == with_network).all()
    assert (webui.generate(PROMPT).pictures[0] == base).all()


def test_a_model_that_is_thrown_away(webui: Any, files: Networks) -> None:
    """Nothing of ours keeps its weights in memory while the next one is loaded, which has the networks then."""
    prompt = f"{PROMPT} <lora:w2-b:1>"
    base, with_network = webui.generate(PROMPT).pictures[0], webui.generate(prompt).pictures[0]
    assert webui.call("/lw-probe/tags/replace-model", {}) == {"is_gone": True, "tags": ["w2-b"]}
    assert (webui.generate(prompt).pictures[0] == with_network).all()
    assert (webui.generate(PROMPT).pictures[0] == base).all()


def test_after_a_failure_the_prompt_is_encoded_anew(webui: Any, files: Networks) -> None:
    """Its encoding without the networks, which the WebUI remembers, is not that of the same prompt with them."""
    prompt = f"{PROMPT} <lora:w2-b:1:0>"
    expected = webui.generate(prompt).pictures[0]
    base = webui.generate(PROMPT).pictures[0]
    webui.call("/lw-probe/tags/fail-once", {})
    assert (webui.generate(prompt).pictures[0] == base).all()
    assert any("injected while patching" in text for text in webui.call("/lw-probe/tags/comments"))
    assert (webui.generate(prompt).pictures[0] == expected).all()


def test_two_checkpoints_in_memory(webui: Any, files: Networks) -> None:
    """The one that is put aside goes without the network that was in it, and has none when it comes back."""
    folder, name = webui.folder / "models" / "Stable-diffusion", "w2-second"
    first = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    source = Path(webui.call("/sdapi/v1/sd-models")[0]["filename"])
    copies = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".yaml")]
    for copy in copies:
        shutil.copyfile(source.with_suffix(copy.suffix), copy)
    try:
        webui.call("/sdapi/v1/refresh-checkpoints", {})
        webui.set_options(sd_checkpoints_limit=2)
        prompt = f"{PROMPT} <lora:w2-b:1>"
        base, with_network = webui.generate(PROMPT).pictures[0], webui.generate(prompt).pictures[0]
        webui.set_options(sd_model_checkpoint=name)
        assert (webui.generate(prompt).pictures[0] == with_network).all()
        webui.set_options(sd_model_checkpoint=first)
        assert (webui.generate(PROMPT).pictures[0] == base).all()
    finally:
        webui.set_options(sd_checkpoints_limit=1, sd_model_checkpoint=first)
        for copy in copies:
            copy.unlink()
        webui.call("/sdapi/v1/refresh-checkpoints", {})


def test_without_a_tag_activation_takes_less_than_a_millisecond(webui: Any, files: Networks) -> None:
    webui.generate(f"{PROMPT} <lora:w2-a:1>")
    assert webui.call("/lw-probe/tags/idle")["median"] < 0.001


def test_another_weight_is_applied_faster_than_by_the_builtin(webui: Any, files: Networks) -> None:
    figures = webui.call("/lw-probe/tags/switch", {"name": "w2-a", "times": 15})
    assert figures["ours"]["median"] < figures["built-in"]["median"]


def test_the_registration_survives_reload_ui(webui: Any, files: Networks) -> None:
    """And the code is read anew, so that an update of the extension takes effect as a whole."""
    prompt = f"{PROMPT} <lora:w2-a:0.25><lora:w2-a:0.5>"  # adding up is ours
    picture = webui.generate(prompt).pictures[0]
    before = webui.call("/lw-probe/tags/owner")
    webui.reload_ui()
    after = webui.call("/lw-probe/tags/owner")
    assert after == {"lora": "WorkshopNetworks", "lyco": "WorkshopNetworks", "present": True, "code": after["code"]}
    assert after["code"] != before["code"]
    assert (webui.generate(prompt).pictures[0] == picture).all()
