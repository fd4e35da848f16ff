"""What people switch on in the WebUI's settings and at its start: trainings and tags beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from network_files import ATTENTION, CONVOLUTIONS, Networks, difference, weights_of
from runs import ended, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-options"
PROMPT = "a red star"
MOST = 0.1  # mean difference of two pictures that are the same, in units of 1/255
LEAST = 0.5  # mean difference of two pictures that are not
OPTIONS: dict[str, dict[str, Any]] = {
    "attention: Doggettx": {"cross_attention_optimization": "Doggettx"},
    "attention: InvokeAI": {"cross_attention_optimization": "InvokeAI"},
    "attention: V1": {"cross_attention_optimization": "V1 - original v1"},
    "attention: sub-quadratic": {"cross_attention_optimization": "sub-quadratic"},
    "attention: the model's own": {"cross_attention_optimization": "None"},
    "token merging": {"token_merging_ratio": 0.5},
    "hypertile": {"hypertile_enable_unet": True, "hypertile_enable_vae": True, "hypertile_max_tile_unet": 64},
    "clip skip": {"CLIP_stop_at_last_layers": 2},
    "tiles": {"tiling": True},
    "a coarser noise schedule": {"use_downcasted_alpha_bar": True},
}
USUAL = {"hypertile_enable_unet": False, "hypertile_enable_vae": False, "hypertile_max_tile_unet": 256}
ROUNDS_OTHERWISE = "attention: sub-quadratic"  # in the VAE, which makes the latents


@pytest.fixture
def files(webui: WebUI, networks: Path) -> None:
    """A LoCon `lw-options-net`."""
    weights = weights_of(checkpoint_file(webui))
    Networks(networks, weights).write("lw-options-net", 2, ATTENTION + CONVOLUTIONS)


def checkpoint_file(webui: WebUI) -> Path:
    return Path(webui.call("/sdapi/v1/sd-models")[0]["filename"])


@contextmanager
def options(webui: WebUI, **changed: Any) -> Iterator[None]:
    """Settings for a while."""
    present = {**USUAL, **webui.call("/sdapi/v1/options")}
    webui.set_options(**changed)
    try:
        yield
    finally:
        webui.set_options(**{name: present[name] for name in changed})


def trained(webui: WebUI, dataset: Path) -> dict[str, torch.Tensor]:
    """What a short training gives."""
    record = ended(webui, start(webui, dataset, NAME))
    assert record["state"] == "finished", record["error"]
    tensors: dict[str, torch.Tensor] = load_file(webui.networks / f"{NAME}.safetensors")
    return tensors


@pytest.fixture(scope="module")
def usual(webui: WebUI, dataset: Path) -> dict[str, torch.Tensor]:
    """What the training gives with the usual settings."""
    return trained(webui, dataset)


@pytest.mark.parametrize("case", OPTIONS)
def test_settings_for_rendering_do_not_reach_the_training(
    webui: WebUI, dataset: Path, usual: dict[str, torch.Tensor], case: str
) -> None:
    """The same file as without them, bit for bit, and they are in force as before afterwards."""
    with options(webui, **OPTIONS[case]):
        picture = webui.generate(PROMPT).pictures[0]
        before = webui.call("/lw-probe/state")
        tensors = trained(webui, dataset)
        after = webui.call("/lw-probe/state")
        assert {key for key in before if before[key] != after[key]} == set()
        assert np.array_equal(webui.generate(PROMPT).pictures[0], picture)
    assert tensors.keys() == usual.keys()
    assert case == ROUNDS_OTHERWISE or all(torch.equal(tensors[key], usual[key]) for key in usual)


def test_another_vae(webui: WebUI, dataset: Path, usual: dict[str, torch.Tensor]) -> None:
    """It is the one that latents are made with, it stands in the file, and it is still there afterwards."""
    vae = webui.folder / "models" / "VAE" / "lw-test-vae.safetensors"
    prefix = "first_stage_model."
    parts = {key: tensor for key, tensor in load_file(checkpoint_file(webui)).items() if key.startswith(prefix)}
    save_file({key.removeprefix(prefix): tensor * 1.02 for key, tensor in parts.items()}, vae)
    own = webui.generate(PROMPT).pictures[0]
    try:
        webui.call("/sdapi/v1/refresh-vae", {})
        with options(webui, sd_vae=vae.name):
            picture = webui.generate(PROMPT).pictures[0]
            assert not np.array_equal(picture, own)
            assert webui.call("/lora-workshop/api/status")["checkpoint"]["vae"] == vae.name
            before = webui.call("/lw-probe/state")
            tensors = trained(webui, dataset)
            after = webui.call("/lw-probe/state")
            assert {key for key in before if before[key] != after[key]} == set()
            assert np.array_equal(webui.generate(PROMPT).pictures[0], picture)
        assert any(not torch.equal(tensors[key], usual[key]) for key in usual)
        with safe_open(webui.networks / f"{NAME}.safetensors", "pt") as file:
            assert file.metadata()["ss_vae_name"] == vae.name
        assert np.array_equal(webui.generate(PROMPT).pictures[0], own)
    finally:
        vae.unlink()
        webui.call("/sdapi/v1/refresh-vae", {})


def test_weights_in_eight_bits_are_refused(another_webui: Callable[..., Any], dataset: Path) -> None:
    """In a WebUI of its own: those that were in eight bits once stay rounded until another instance is made."""
    with another_webui(settings={"fp8_storage": "Enable"}) as coarse:
        before = coarse.call("/lw-probe/state")
        record = ended(coarse, start(coarse, dataset, NAME))
        assert record["state"] == "failed" and "switch FP8 weight off" in record["error"]
        assert coarse.call("/lw-probe/state") == before


@contextmanager
def second_checkpoint(webui: WebUI) -> Iterator[str]:
    """Another checkpoint, with a YAML of its own: the WebUI makes another instance for it."""
    first = checkpoint_file(webui)
    path = first.with_name(f"{NAME}-second.safetensors")
    generator = torch.Generator().manual_seed(5)
    tensors = {
        key: tensor + 0.05 * tensor.float().std() * torch.randn(tensor.shape, generator=generator)
        if key.startswith("model.") and tensor.ndim > 1
        else tensor
        for key, tensor in load_file(first).items()
    }
    save_file(tensors, path)
    yaml = path.with_suffix(".yaml")
    shutil.copyfile(first.with_suffix(".yaml"), yaml)
    try:
        webui.call("/sdapi/v1/refresh-checkpoints", {})
        yield path.stem
    finally:
        path.unlink()
        yaml.unlink()
        webui.call("/sdapi/v1/refresh-checkpoints", {})


@pytest.mark.parametrize("in_memory", [1, 2], ids=["one in memory", "two in memory"])
def test_a_refiner_has_the_network_too(webui: WebUI, files: None, in_memory: int) -> None:
    """As with the built-in and both in memory: where it loads a refiner anew, the built-in loses the network."""
    prompt = f"{PROMPT} <lora:lw-options-net:1>"
    with second_checkpoint(webui) as refiner, options(webui, sd_checkpoints_limit=in_memory):
        refined = {"refiner_checkpoint": refiner, "refiner_switch_at": 0.5, "steps": 6}
        base, plain = webui.generate(PROMPT).pictures[0], webui.generate(prompt).pictures[0]
        webui.generate(PROMPT, **refined)  # both are loaded once
        ours = [webui.generate(text, **refined).pictures[0] for text in (prompt, PROMPT, prompt)]
        assert np.array_equal(ours[0], ours[2])
        assert np.array_equal(webui.generate(prompt).pictures[0], plain)
        with options(webui, lora_workshop_tags="built-in", sd_checkpoints_limit=2):
            theirs = [webui.generate(text, **refined).pictures[0] for text in (PROMPT, prompt, PROMPT)][1:]
        assert difference(ours[0], theirs[0]) < MOST
        assert np.array_equal(ours[1], theirs[1])
        assert difference(ours[0], ours[1]) > LEAST
        assert np.array_equal(webui.generate(PROMPT).pictures[0], base)
    assert np.array_equal(webui.generate(PROMPT).pictures[0], base)


def test_medvram(another_webui: Callable[..., Any], webui: WebUI, dataset: Path, files: None, usual: Any) -> None:
    prompt = f"{PROMPT} <lora:lw-options-net:1>"
    expected = [webui.generate(text).pictures[0] for text in (PROMPT, prompt)]
    with another_webui("--medvram") as sparing:
        pictures = [sparing.generate(text).pictures[0] for text in (PROMPT, prompt, PROMPT)]
        before = sparing.call("/lw-probe/state")
        tensors = trained(sparing, dataset)
        after = sparing.call("/lw-probe/state")
        assert {key for key in before if before[key] != after[key]} == set()
        assert np.array_equal(sparing.generate(PROMPT).pictures[0], expected[0])
    assert all(np.array_equal(made, wanted) for made, wanted in zip(pictures, [*expected, expected[0]], strict=True))
    assert all(torch.equal(tensors[key], usual[key]) for key in usual)


def test_lowvram(another_webui: Callable[..., Any], webui: WebUI, dataset: Path, files: None) -> None:
    """Tags work, a training is refused."""
    prompt = f"{PROMPT} <lora:lw-options-net:1>"
    expected = webui.generate(prompt).pictures[0]
    with another_webui("--lowvram") as sparing:
        base = sparing.generate(PROMPT).pictures[0]
        assert np.array_equal(sparing.generate(prompt).pictures[0], expected)
        before = sparing.call("/lw-probe/state")
        record = ended(sparing, start(sparing, dataset, NAME))
        assert record["state"] == "failed" and "--medvram" in record["error"]
        assert sparing.call("/lw-probe/state") == before
        assert np.array_equal(sparing.generate(PROMPT).pictures[0], base)
