"""Checkpoints of random weights in the layout of SD1, SD2 and SDXL, of any size: for tests and benchmarks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Architecture, PredictionType
from lora_ext.checkpoint.inpainting import INPAINTING_CHANNELS
from lora_ext.checkpoint.layouts import LAYOUTS
from lora_ext.checkpoint.text.openclip import SD2_TEXT, SDXL_TEXT_2, OpenClipConfig, OpenClipText
from lora_ext.host.standalone.checkpoint_yaml import checkpoint_yaml
from lora_ext.host.standalone.unet import SD1_UNET, SD2_UNET, SDXL_UNET, UNet, UNetConfig
from lora_ext.host.standalone.vae import SD_VAE, VAE, VAEConfig

TINY_UNET = UNetConfig(model_channels=32, channel_mult=(1, 1, 2, 2), num_heads=4, context_dim=32)
TINY_VAE = VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
TINY_TEXT: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY_OPENCLIP = OpenClipConfig(width=32, layers=3, heads=2, mlp_width=64, projection=32)
CLIP_L: dict[str, int] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


@dataclass(frozen=True)
class RandomKind:
    """What a checkpoint is made of; `clip` holds arguments of transformers' `CLIPTextConfig`."""

    architecture: Architecture
    unet: UNetConfig
    vae: VAEConfig = TINY_VAE
    clip: Mapping[str, int] | None = None
    openclip: OpenClipConfig | None = None
    prediction_type: PredictionType = "epsilon"


_TINY_SD2 = RandomKind(
    "SD2",
    replace(TINY_UNET, num_heads=None, num_head_channels=16, use_linear_in_transformer=True),
    openclip=replace(TINY_OPENCLIP, projection=None),
)
_SD2 = RandomKind("SD2", SD2_UNET, SD_VAE, openclip=SD2_TEXT)
TINY_KINDS: dict[str, RandomKind] = {
    "sd1": RandomKind("SD1", TINY_UNET, clip=TINY_TEXT),
    "sd1-inpainting": RandomKind("SD1", replace(TINY_UNET, in_channels=INPAINTING_CHANNELS), clip=TINY_TEXT),
    "sd2": _TINY_SD2,
    "sd2-v": replace(_TINY_SD2, prediction_type="v_prediction"),
    "sdxl": RandomKind(
        "SDXL",
        UNetConfig(
            model_channels=32,
            channel_mult=(1, 1, 2),
            transformer_depth=(0, 1, 2),
            transformer_depth_middle=2,
            num_head_channels=16,
            context_dim=64,
            use_linear_in_transformer=True,
            adm_in_channels=32 + 6 * 256,
        ),
        clip=TINY_TEXT,
        openclip=TINY_OPENCLIP,
    ),
}
"""Kinds with all the block structure of the real ones that run in milliseconds."""

FULL_KINDS: dict[str, RandomKind] = {
    "sd1": RandomKind("SD1", SD1_UNET, SD_VAE, clip=CLIP_L),
    "sd1-inpainting": RandomKind("SD1", replace(SD1_UNET, in_channels=INPAINTING_CHANNELS), SD_VAE, clip=CLIP_L),
    "sd2": _SD2,
    "sd2-v": replace(_SD2, prediction_type="v_prediction"),
    "sdxl": RandomKind("SDXL", SDXL_UNET, SD_VAE, clip=CLIP_L, openclip=SDXL_TEXT_2),
}
"""Kinds of the real ones' size."""


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


def _parts(kind: RandomKind) -> Iterator[tuple[str, nn.Module]]:
    """(key prefix in a checkpoint, module without storage) of each network."""
    from transformers import CLIPTextConfig, CLIPTextModel

    layout = LAYOUTS[kind.architecture]
    with torch.device("meta"):
        yield layout.unet, UNet(kind.unet)
        yield layout.vae, VAE(kind.vae)
        if layout.clip is not None:
            yield layout.clip, CLIPTextModel(CLIPTextConfig(**dict(kind.clip or {})))
        if layout.openclip is not None and kind.openclip is not None:
            yield layout.openclip, OpenClipText(kind.openclip)


def write_random_kind(path: Path, kind: RandomKind, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Write `path` (.safetensors, with the keys of its kind) and its YAML beside it, with values that `seed` decides.

    Tensors are drawn and written one at a time: a file of the real size needs no more memory than its largest one.
    """
    shapes = {
        (prefix, key): parameter.shape
        for prefix, module in _parts(kind)
        for key, parameter in module.named_parameters()
    }
    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(_header({prefix + key: shape for (prefix, key), shape in shapes.items()}, dtype))
        for (_, key), shape in shapes.items():
            values = random_values(key, shape, generator).to(dtype)
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    yaml_text = checkpoint_yaml(
        kind.unet,
        kind.vae,
        text_heads=None if kind.clip is None else kind.clip["num_attention_heads"],
        prediction_type=kind.prediction_type,
        architecture=kind.architecture,
        openclip_heads=None if kind.openclip is None else kind.openclip.heads,
    )
    path.with_suffix(".yaml").write_text(yaml_text, encoding="utf-8")


def _header(shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> bytes:
    """The beginning of a safetensors file that holds tensors of these shapes one behind the other."""
    name = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    entries, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[key] = {"dtype": name, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_random_checkpoint(
    path: Path,
    unet: UNetConfig = TINY_UNET,
    vae: VAEConfig = TINY_VAE,
    text: Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    prediction_type: PredictionType = "epsilon",
) -> None:
    """As `write_random_kind`, an SD1 checkpoint; `text` None is a tiny encoder."""
    clip = TINY_TEXT if text is None else text
    write_random_kind(path, RandomKind("SD1", unet, vae, clip, prediction_type=prediction_type), dtype, seed)
