"""SD2, SDXL and inpainting checkpoints from the file on: what they are found to be, and what comes out of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ext.checkpoint.conditioning import Frame, encode_prompts, frame_vectors
from lora_ext.checkpoint.text.openclip import SD2_TEXT, SDXL_TEXT_2, OpenClipConfig, OpenClipText
from lora_ext.host.standalone.architecture import openclip_config
from lora_ext.host.standalone.checkpoint_yaml import CheckpointYaml, read_checkpoint_yaml
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.host.standalone.loader import LoadedCheckpoint, load_checkpoint
from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, TINY_TEXT, write_random_kind
from lora_ext.protocols import GenerateRequest, UserError

CPU = torch.device("cpu")
DATA = Path(__file__).parent / "data"
SD2_PREFIX, SDXL_PREFIX = "cond_stage_model.model.", "conditioner.embedders.1.model."
Paths = Callable[[str], Path]


def load(path: Path) -> LoadedCheckpoint:
    return load_checkpoint(path, CPU, torch.float32)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a checkpoint with other tensors, and its YAML."""
    save_file(change(dict(load_file(str(source)))), str(target))
    target.with_suffix(".yaml").write_text(source.with_suffix(".yaml").read_text("utf-8"), encoding="utf-8")
    return target


def text_shapes(architecture: str, prefix: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(DATA / f"state_dict_keys_{architecture}.json.gz", "rt", encoding="utf-8") as file:
        shapes: dict[str, list[int]] = json.load(file)
    return {key.removeprefix(prefix): tuple(shape) for key, shape in shapes.items() if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("architecture", "prefix", "config"), [("sd2", SD2_PREFIX, SD2_TEXT), ("sdxl", SDXL_PREFIX, SDXL_TEXT_2)]
)
def test_openclip_has_the_checkpoints_keys_and_shapes(architecture: str, prefix: str, config: OpenClipConfig) -> None:
    expected = text_shapes(architecture, prefix)
    assert openclip_config(expected, CheckpointYaml()) == OpenClipConfig(
        config.width, config.layers, config.heads, mlp_width=4 * config.width, projection=config.projection
    )
    with torch.device("meta"):
        module = OpenClipText(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert shapes == {key: shape for key, shape in expected.items() if key != "logit_scale"}


@pytest.mark.parametrize(
    ("name", "architecture", "prediction", "scale", "encoders", "channels"),
    [
        ("sd1", "SD1", "epsilon", 0.18215, ["lora_te"], 4),
        ("sd1-inpainting", "SD1", "epsilon", 0.18215, ["lora_te"], 9),
        ("sd2", "SD2", "epsilon", 0.18215, ["lora_te"], 4),
        ("sd2-v", "SD2", "v_prediction", 0.18215, ["lora_te"], 4),
        ("sdxl", "SDXL", "epsilon", 0.13025, ["lora_te1", "lora_te2"], 4),
    ],
)
def test_every_kind_is_recognised(
    name: str, architecture: str, prediction: str, scale: float, encoders: list[str], channels: int,
    tiny_kind_path: Paths,
) -> None:  # fmt: skip
    loaded = load(tiny_kind_path(name))
    checkpoint = loaded.checkpoint
    assert (checkpoint.architecture, checkpoint.prediction_type) == (architecture, prediction)
    assert (checkpoint.latent_scale, checkpoint.input_channels) == (scale, channels)
    assert [encoder.key_prefix for encoder in checkpoint.text_encoders] == encoders
    unet: Any = checkpoint.unet
    assert unet.config == TINY_KINDS[name].unet
    assert loaded.unexpected == () and all(missing.endswith("position_ids") for missing in loaded.missing)
    stored = load_file(str(tiny_kind_path(name)))
    prefixes = {"SD2": [SD2_PREFIX], "SDXL": ["conditioner.embedders.0.transformer.", SDXL_PREFIX]}
    for encoder, prefix in zip(
        checkpoint.text_encoders, prefixes.get(architecture, ["cond_stage_model.transformer."]), strict=True
    ):
        for key, parameter in encoder.module.named_parameters():
            assert parameter.equal(stored[prefix + key]) and not parameter.requires_grad


def test_half_precision_of_both_text_encoders(tiny_kind_path: Paths) -> None:
    checkpoint = load_checkpoint(tiny_kind_path("sdxl"), CPU, torch.bfloat16).checkpoint
    for encoder in checkpoint.text_encoders:
        assert {parameter.dtype for parameter in encoder.module.parameters()} == {torch.bfloat16}
    assert next(checkpoint.vae.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("marks", "prediction"), [((), "epsilon"), (("v_pred",), "v_prediction")])
def test_sdxl_files_may_be_marked(marks: tuple[str, ...], prediction: str, tmp_path: Path) -> None:
    kind = TINY_KINDS["sdxl"]
    unet = replace(kind.unet, model_channels=64, num_head_channels=64)
    path, marked = tmp_path / "model.safetensors", tmp_path / "marked.safetensors"
    write_random_kind(path, replace(kind, unet=unet))
    save_file({**load_file(str(path)), **{mark: torch.zeros(1) for mark in (*marks, "ztsnr")}}, str(marked))
    loaded = load(marked)
    assert loaded.checkpoint.prediction_type == prediction and loaded.unexpected == ()
    assert loaded.checkpoint.latent_scale == 0.13025
    assert loaded.checkpoint.schedule.alphas_cumprod[-1] == 0


@pytest.mark.parametrize(
    ("bias", "channels", "expected"), [(0.0, 4, "epsilon"), (-4.0, 4, "v_prediction"), (-4.0, 9, "epsilon")]
)
def test_sd2_without_a_yaml_is_tried(bias: float, channels: int, expected: str, tmp_path: Path) -> None:
    """The U-Net's last layer decides what comes out of it: nothing, or far below the latents; not in inpainting ones,
    which the WebUI takes to predict the noise."""
    kind = TINY_KINDS["sd2"]
    source = tmp_path / "source.safetensors"
    unet = replace(kind.unet, model_channels=64, num_head_channels=64, in_channels=channels)
    write_random_kind(source, replace(kind, unet=unet))
    path = tmp_path / "model.safetensors"
    last = {"weight": torch.zeros(4, 64, 3, 3), "bias": torch.full((4,), bias)}
    named = {f"model.diffusion_model.out.2.{name}": tensor for name, tensor in last.items()}
    save_file({**load_file(str(source)), **named}, str(path))
    loaded = load(path)
    assert loaded.checkpoint.prediction_type == expected
    assert any("was tried" in note for note in loaded.notes) == (channels == 4)


def test_sd2_files_may_lack_what_is_not_used(tmp_path: Path, tiny_kind_path: Paths) -> None:
    def extended(stored: dict[str, Tensor]) -> dict[str, Tensor]:
        more = {"text_projection": torch.zeros(32, 8), "logit_scale": torch.zeros(())}
        return {**stored, **{SD2_PREFIX + key: tensor for key, tensor in more.items()}}

    plain = load(tiny_kind_path("sd2")).checkpoint.text_encoders[0]
    loaded = load(rewritten(tiny_kind_path("sd2"), tmp_path / "more.safetensors", extended))
    assert loaded.unexpected == ()
    encoder = loaded.checkpoint.text_encoders[0]
    assert encoder.module.text_projection.shape == (32, 8)
    ids = plain.tokenize(["a cat"], 75)
    assert encoder.encode(ids).equal(plain.encode(ids))


def test_sdxl_cannot_do_without_its_text_projection(tmp_path: Path, tiny_kind_path: Paths) -> None:
    key = f"{SDXL_PREFIX}text_projection"
    path = rewritten(
        tiny_kind_path("sdxl"),
        tmp_path / "model.safetensors",
        lambda stored: {name: tensor for name, tensor in stored.items() if name != key},
    )
    with pytest.raises(UserError, match=f"1 tensors are missing: {key}"):
        load(path)


@pytest.mark.parametrize("name", ["sd1-inpainting", "sd2", "sd2-v", "sdxl"])
def test_what_is_written_beside_a_checkpoint_is_read_again(name: str, tiny_kind_path: Paths) -> None:
    kind, described = TINY_KINDS[name], read_checkpoint_yaml(tiny_kind_path(name).with_suffix(".yaml"))
    assert (described.num_heads, described.num_head_channels) == (kind.unet.num_heads, kind.unet.num_head_channels)
    assert described.prediction_type == kind.prediction_type
    assert described.openclip_heads == (kind.openclip.heads if kind.openclip else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY_KINDS))
def test_pictures_of_every_kind(name: str, tiny_kind_path: Paths, tmp_path: Path) -> None:
    """The same picture again, another with another prompt, and the same after a network was applied and left out."""
    host = StandaloneHost(tiny_kind_path(name), tmp_path / "home", device="cpu", dtype="float32")
    request = GenerateRequest("a cat", width=64, height=48, steps=2, seed=3, cfg_scale=4.0)

    def drawn(**changed: Any) -> bytes:
        [picture] = host.generate(replace(request, **changed))
        assert picture.image.size == (64, 48) and picture.messages == ()
        return picture.image.tobytes()

    first = drawn()
    assert drawn() == first != drawn(prompt="a dog")
    assert drawn(negative_prompt="blurry") != first
    keys = {"SDXL": "lora_unet_middle_block_1_proj_in"}
    key = keys.get(host.loaded.checkpoint.architecture, "lora_unet_mid_block_attentions_0_proj_in")
    tensors = {f"{key}.lora_{side}.weight": torch.randn(shape) for side, shape in (("down", (2, 64)), ("up", (64, 2)))}
    save_file(tensors, str(host.folders().networks[0] / "some.safetensors"))
    assert drawn(prompt="a cat <lora:some:1>") != first == drawn()


def test_sdxl_takes_zeros_for_an_empty_negative_prompt(tiny_kind_path: Paths, tmp_path: Path) -> None:
    host = StandaloneHost(tiny_kind_path("sdxl"), tmp_path / "home", device="cpu", dtype="float32")
    checkpoint, seen = host.loaded.checkpoint, []
    original = checkpoint.unet.forward

    def forward(x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor) -> Tensor:
        seen.append((context, y))
        result: Tensor = original(x, timesteps, context, y)
        return result

    checkpoint.unet.__dict__["forward"] = forward
    for negative in ("", "blurry"):
        host.generate(GenerateRequest("a cat", negative, width=64, height=48, steps=1, seed=3))
    (context, y), (other, _) = seen
    assert context[1].eq(0).all() and y[1, :32].eq(0).all() and context[0].ne(0).any() and y[0, :32].ne(0).any()
    assert other[1].ne(0).any()
    expected = frame_vectors([Frame((64, 48), (0, 0), (64, 48))])[0]
    assert y[0, 32:].equal(expected) and y[1, 32:].equal(expected)


@torch.no_grad()
def test_sdxl_from_the_file_on_equals_diffusers_and_transformers(tiny_kind_path: Paths) -> None:
    """Nothing of ours but loader and networks on one side, nothing of ours on the other."""
    from diffusers_conversion import diffusers_unet
    from transformers import CLIPTextConfig, CLIPTextModel

    checkpoint = load(tiny_kind_path("sdxl")).checkpoint
    state = load_file(str(tiny_kind_path("sdxl")))

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}

    both = encode_prompts(checkpoint.text_encoders, ["a photo of a cat"])
    clip = CLIPTextModel(CLIPTextConfig(**TINY_TEXT)).eval()
    clip.load_state_dict(part("conditioner.embedders.0.transformer."), strict=False)
    ids = checkpoint.text_encoders[0].tokenize(["a photo of a cat"], 75)[:, 0]
    expected = clip(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(both.context[:, :, :32], expected, atol=1e-5, rtol=0)
    assert both.context.shape == (1, 77, 64) and both.pooled is not None

    latents, timesteps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([500])
    vector = both.vector([Frame.whole((64, 64))])
    theirs = diffusers_unet(part("model.diffusion_model."), TINY_KINDS["sdxl"].unet)
    predicted = theirs(latents, timesteps, both.context, class_labels=vector).sample
    ours = checkpoint.unet(latents, timesteps, both.context, vector)
    assert predicted.std() > 0.1
    torch.testing.assert_close(ours, predicted, atol=1e-4, rtol=0)
