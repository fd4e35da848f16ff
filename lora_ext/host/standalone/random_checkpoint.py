"""Checkpoints of random weights in SD1's layout, of any size: for tests and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_ext.host.standalone.architecture import CHECKPOINT_PREFIXES
from lora_ext.host.standalone.checkpoint_yaml import checkpoint_yaml
from lora_ext.host.standalone.unet import UNet, UNetConfig
from lora_ext.host.standalone.vae import VAE, VAEConfig

TINY_UNET = UNetConfig(model_channels=32, channel_mult=(1, 1, 2, 2), num_heads=4, context_dim=32)
TINY_VAE = VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
TINY_TEXT: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def random_values(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """fp32 values for the parameter `key`: about what a trained network has, so that signals keep their size.

    Matrices and kernels get a standard deviation of 1/√fan_in, norms' weights lie around 1, biases around 0.
    """
    values = torch.randn(shape, generator=generator)
    if "embedding" in key:
        return values * 0.02
    if len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1.0 + 0.05 * values if key.endswith("weight") else 0.02 * values


@torch.no_grad()
def fill_randomly(module: nn.Module, seed: int) -> None:
    """Give every parameter of `module` random values in place, zero-initialised ones included."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in module.named_parameters():
        parameter.copy_(random_values(key, parameter.shape, generator))


def _parts(unet: UNetConfig, vae: VAEConfig, text: Mapping[str, int]) -> list[tuple[str, nn.Module]]:
    """(key prefix in a checkpoint, module without storage) of the three networks."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return [
            (CHECKPOINT_PREFIXES.unet, UNet(unet)),
            (CHECKPOINT_PREFIXES.vae, VAE(vae)),
            (CHECKPOINT_PREFIXES.text, CLIPTextModel(CLIPTextConfig(**dict(text)))),
        ]


def write_random_checkpoint(
    path: Path,
    unet: UNetConfig = TINY_UNET,
    vae: VAEConfig = TINY_VAE,
    text: Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    prediction_type: str = "epsilon",
) -> None:
    """Write `path` (.safetensors, SD1's keys) and its YAML beside it, with values that `seed` decides.

    `text` holds arguments of transformers' `CLIPTextConfig`; None is a tiny encoder.
    """
    text = TINY_TEXT if text is None else text
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    heads = 0
    for prefix, module in _parts(unet, vae, text):
        for key, parameter in module.named_parameters():
            tensors[prefix + key] = random_values(key, parameter.shape, generator).to(dtype)
        config: Any = getattr(module, "config", None)
        heads = getattr(config, "num_attention_heads", heads)
    save_file(tensors, str(path))
    yaml_text = checkpoint_yaml(unet, vae, text_heads=heads, prediction_type=prediction_type)
    path.with_suffix(".yaml").write_text(yaml_text, encoding="utf-8")
