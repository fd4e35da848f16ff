"""The standalone networks carry the keys and shapes of a full checkpoint of each architecture."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from lora_ext.checkpoint.sinusoids import timestep_embedding
from lora_ext.host.standalone.unet import SD1_UNET, SD2_UNET, SDXL_UNET, UNet, UNetConfig
from lora_ext.host.standalone.vae import SD_VAE, VAE, VAEConfig

DATA = Path(__file__).parent / "data"
SMALL_UNET = UNetConfig(model_channels=32, channel_mult=(1, 1, 1, 1), num_heads=2, context_dim=16)


def checkpoint_shapes(architecture: str, prefix: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(DATA / f"state_dict_keys_{architecture}.json.gz", "rt", encoding="utf-8") as file:
        shapes: dict[str, list[int]] = json.load(file)
    return {key.removeprefix(prefix): tuple(shape) for key, shape in shapes.items() if key.startswith(prefix)}


def module_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    ("architecture", "config", "count"), [("sd1", SD1_UNET, 686), ("sd2", SD2_UNET, 686), ("sdxl", SDXL_UNET, 1680)]
)
def test_unet_has_the_checkpoints_keys_and_shapes(architecture: str, config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        unet = UNet(config)
    expected = checkpoint_shapes(architecture, "model.diffusion_model.")
    assert len(expected) == count
    assert module_shapes(unet) == expected


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_vae_has_the_checkpoints_keys_and_shapes(architecture: str) -> None:
    with torch.device("meta"):
        vae = VAE(SD_VAE)
    expected = checkpoint_shapes(architecture, "first_stage_model.")
    assert len(expected) == 248
    assert module_shapes(vae) == expected


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 5)])
def test_odd_latent_sizes_keep_their_size(size: tuple[int, int]) -> None:
    unet = UNet(SMALL_UNET)
    latents = torch.randn(2, 4, *size)
    assert unet(latents, torch.tensor([3, 900]), torch.randn(2, 77, 16)).shape == latents.shape


def test_timestep_embedding_has_the_cosines_first() -> None:
    embedding = timestep_embedding(torch.tensor([0, 1]), 4)
    torch.testing.assert_close(
        embedding, torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5403023, 0.99995, 0.84147098, 0.0099998]])
    )


def test_y_is_asked_for_exactly_where_the_model_takes_it() -> None:
    with pytest.raises(ValueError, match="adm_in_channels"):
        UNet(SMALL_UNET)(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, 77, 16), torch.zeros(1, 8))


def test_vae_round_trip_shapes_and_sampling() -> None:
    vae = VAE(VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1))
    posterior = vae.encode(torch.zeros(1, 3, 64, 96))
    first, second = (posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert first.shape == (1, 4, 8, 12)
    assert torch.equal(first, second)
    assert vae.decode(first).shape == (1, 3, 64, 96)
