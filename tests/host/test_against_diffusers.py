"""U-Net, VAE and text encoder against independent implementations, on the same random weights in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from diffusers_conversion import diffusers_unet, diffusers_vae
from safetensors.torch import load_file
from torch import Tensor

from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.host.standalone.random_checkpoint import TINY_UNET, TINY_VAE, fill_randomly
from lora_ext.host.standalone.unet import SD1_UNET, UNet, UNetConfig
from lora_ext.host.standalone.vae import SD_VAE, VAE, VAEConfig

BOUND = 1e-4
Module = TypeVar("Module", UNet, VAE)
SD1_PROPORTIONS = UNetConfig(model_channels=32, num_heads=8, context_dim=48)
SD2_LIKE = UNetConfig(model_channels=64, num_head_channels=32, context_dim=48, use_linear_in_transformer=True)
SDXL_LIKE = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 4),
    transformer_depth=(0, 2, 3),
    transformer_depth_middle=3,
    num_head_channels=32,
    context_dim=48,
    use_linear_in_transformer=True,
    adm_in_channels=24,
)
SIZES = [(8, 8), (9, 7), (5, 13)]


def max_difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomly_filled(build: Callable[[], Module], seed: int) -> Module:
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu").eval()
    fill_randomly(module, seed)
    return module


@torch.no_grad()
def check_unet(unet: UNet, size: tuple[int, int]) -> None:
    theirs = diffusers_unet(unet.state_dict(), unet.config)
    x, context = noise(1, 2, 4, *size), noise(2, 2, 77, unet.config.context_dim)
    y = None if unet.config.adm_in_channels is None else noise(3, 2, unet.config.adm_in_channels)
    timesteps = torch.tensor([3, 871])
    ours = unet(x, timesteps, context, y)
    assert ours.std() > 0.1  # the comparison means something
    assert max_difference(ours, theirs(x, timesteps, context, class_labels=y).sample) < BOUND


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "config", [TINY_UNET, SD1_PROPORTIONS, SD2_LIKE, SDXL_LIKE], ids=["tiny", "SD1", "SD2-like", "SDXL-like"]
)
def test_unet_equals_diffusers(config: UNetConfig, size: tuple[int, int]) -> None:
    check_unet(randomly_filled(lambda: UNet(config), 11), size)


@torch.no_grad()
def check_vae(vae: VAE, size: tuple[int, int]) -> None:
    theirs = diffusers_vae(vae.state_dict(), vae.config)
    images = noise(4, 1, 3, *size).clamp(-1, 1)
    ours, expected = vae.encode(images), theirs.encode(images).latent_dist
    assert ours.mean.std() > 0.1
    assert max_difference(ours.mean, expected.mean) < BOUND
    assert max_difference(ours.logvar, expected.logvar) < BOUND
    assert max_difference(vae.decode(ours.mean), theirs.decode(expected.mean).sample) < BOUND


@pytest.mark.parametrize("size", [(64, 64), (72, 56)], ids=str)
@pytest.mark.parametrize("config", [TINY_VAE, VAEConfig(ch=32)], ids=["tiny", "SD1"])
def test_vae_equals_diffusers(config: VAEConfig, size: tuple[int, int]) -> None:
    check_vae(randomly_filled(lambda: VAE(config), 12), size)


@pytest.mark.slow
def test_full_size_networks_equal_diffusers() -> None:
    check_unet(randomly_filled(lambda: UNet(SD1_UNET), 13), (9, 8))
    check_vae(randomly_filled(lambda: VAE(SD_VAE), 14), (64, 72))


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_a_loaded_checkpoint_equals_the_other_implementations(tiny_checkpoint_path: Path, clip_skip: int) -> None:
    """From the file on: nothing of ours but the loader and the networks on one side, nothing of ours on the other."""
    from transformers import CLIPTextConfig, CLIPTextModel

    state = load_file(str(tiny_checkpoint_path))

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}

    checkpoint = load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32).checkpoint
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    )
    text.load_state_dict(part("cond_stage_model.transformer."), strict=False)
    ids = torch.tensor([[49406, 320, 1125, 539, 320, 2368, *[49407] * 71]])
    output = text.eval()(input_ids=ids, output_hidden_states=True)
    expected = (
        output.last_hidden_state
        if clip_skip == 1
        else text.text_model.final_layer_norm(output.hidden_states[-clip_skip])
    )
    encoder = checkpoint.text_encoders[0]
    context = encoder.encode(encoder.tokenize(["a photo of a cat"], 75), clip_skip)
    assert max_difference(context, expected) < BOUND

    unet = diffusers_unet(part("model.diffusion_model."), TINY_UNET)
    latents, timesteps = noise(5, 1, 4, 8, 8), torch.tensor([500])
    predicted = unet(latents, timesteps, expected).sample
    assert max_difference(checkpoint.unet(latents, timesteps, context), predicted) < BOUND

    vae = diffusers_vae(part("first_stage_model."), TINY_VAE)
    decoded = vae.decode(latents / 0.18215).sample
    assert max_difference(checkpoint.decode_latents(latents), decoded) < BOUND
