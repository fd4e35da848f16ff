"""Full-size models of random weights in memory, and networks for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint, TextEncoder
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.openclip import OpenClipText, OpenClipTextEncoder
from lora_ext.checkpoint.weight_views import WeightView
from lora_ext.host.standalone.random_checkpoint import FULL_KINDS
from lora_ext.host.standalone.unet import UNet
from lora_ext.networks.file import write_network

CONVOLUTIONS = ("_conv", "_in_layers_2", "_emb_layers_1", "_out_layers_3", "_skip_connection", "_op")
ENDS = ("time_embed", "conv_in", "conv_out", "label_emb", "input_blocks_0_", "lora_unet_out_")
_SDXL = FULL_KINDS["sdxl"]
KINDS = {
    **{name: FULL_KINDS[name] for name in ("sd1", "sd2", "sdxl")},
    "sdxl-part": replace(_SDXL, unet=replace(_SDXL.unet, transformer_depth=(0, 2, 2), transformer_depth_middle=2)),
}
"""The last is SDXL with two of the ten layers in its deep transformers, where the memory does not suffice for all."""

_SPREAD = 2**20 + 1  # random numbers that are repeated: drawing billions takes minutes


def full_size(kind: str, dtype: torch.dtype, device: str, with_text: bool) -> Checkpoint:
    """U-Net and, where wanted, text encoders of a kind's real size; no VAE, no file."""
    from transformers import CLIPTextConfig, CLIPTextModel

    plan = KINDS[kind]
    encoders: list[TextEncoder] = []
    with torch.device("meta"):
        unet = UNet(plan.unet)
        if with_text:
            prefix = "lora_te1" if plan.openclip else "lora_te"
            clip = CLIPTextModel(CLIPTextConfig(**dict(plan.clip or {})))
            encoders.append(HFClipTextEncoder(clip, prefix, penultimate=bool(plan.openclip)))
        if with_text and plan.openclip:
            encoders.append(OpenClipTextEncoder(OpenClipText(plan.openclip), "lora_te2", pools=True))
    for module in (unet, *(encoder.module for encoder in encoders)):
        fill(module.to(dtype).to_empty(device=device))
    return Checkpoint(
        unet, nn.Module(), encoders, NoiseSchedule(torch.linspace(0.999, 0.005, 1000)), plan.architecture,
        plan.prediction_type, f"full-size {kind}", None, "",
    )  # fmt: skip


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Give every parameter small random values, without gradients."""
    module.requires_grad_(False)
    values = torch.randn(_SPREAD, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    for parameter in module.parameters():
        flat = parameter.view(-1)
        for first in range(0, len(flat), _SPREAD):
            part = flat[first : first + _SPREAD]
            part.copy_(values[: len(part)])


def write_networks(
    folder: Path, checkpoint: Checkpoint, count: int, rank: int, with_convolutions: bool
) -> tuple[list[str], int]:
    """Names of so many LoRA (or LoCon) files in fp16, and the bytes of the weights that each of them touches."""
    views = adapted(checkpoint_weights(checkpoint), with_convolutions)
    names = [f"lw-bench-{number}" for number in range(count)]
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for key, view in views.items():
            out, columns, *kernel = view.shape
            tensors[f"{key}.lora_up.weight"] = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.01
            tensors[f"{key}.lora_down.weight"] = torch.randn(rank, columns, *kernel, generator=generator) * 0.01
            tensors[f"{key}.alpha"] = torch.tensor(float(rank))
        write_network(folder / f"{name}.safetensors", tensors, {}, "fp16")
    return names, size_of(view.detach() for view in views.values())


def adapted(weights: dict[str, WeightView], with_convolutions: bool) -> dict[str, WeightView]:
    """Weights that sd-scripts' LoRA adapts, or its LoCon: no norms, and neither the first nor the last layers."""
    chosen = {}
    for key, view in weights.items():
        transformer = "_attentions_" in key or "_transformer_blocks_" in key or key.endswith(("_proj_in", "_proj_out"))
        convolution = with_convolutions and ("_resnets_" in key or key.endswith(CONVOLUTIONS))
        inside = key.startswith("lora_te") or transformer or convolution
        if inside and len(view.shape) >= 2 and not any(end in key for end in ENDS):
            chosen[key] = view
    return chosen


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
