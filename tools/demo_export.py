"""The demo checkpoint's files: networks in SD1 layout as fp16 safetensors, and the YAML beside it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_ext.demo.drawing import Scene
from lora_ext.host.standalone.checkpoint_yaml import checkpoint_yaml
from lora_ext.host.standalone.unet import UNet
from lora_ext.host.standalone.vae import VAE
from tools.demo_diffusion_stage import DEMO_TEXT, DEMO_UNET, token_ids
from tools.demo_vae_stage import DEMO_VAE

SIZE_LIMIT = 16_000_000
TOKEN_EMBEDDING = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def checkpoint_tensors(unet: UNet, vae: VAE, text: nn.Module) -> dict[str, Tensor]:
    """All tensors under SD1's names, floating-point ones in fp16."""
    parts = {
        "model.diffusion_model.": unet,
        "first_stage_model.": vae,
        "cond_stage_model.transformer.": text,
    }
    return {
        prefix + name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for prefix, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def known_tokens() -> list[int]:
    """Ids of all tokens that captions of drawn scenes are made of."""
    rng = random.Random(0)
    captions = [Scene.random(rng).caption(rng) for _ in range(4000)]
    return token_ids(captions).unique().tolist()


def make_new_words_audible(tensors: dict[str, Tensor]) -> None:
    """Scale the embeddings of words that no caption held to the length of those that captions did hold, in place.

    They keep the small random values that they began with; a trigger word would hardly reach the encoder's layers.
    """
    embeddings = tensors[TOKEN_EMBEDDING].float()
    known = torch.zeros(len(embeddings), dtype=torch.bool)
    known[known_tokens()] = True
    lengths = embeddings.norm(dim=1)
    embeddings[~known] *= (lengths[known].median() / lengths[~known].median()).item()
    tensors[TOKEN_EMBEDDING] = embeddings.half()


def export(path: Path, unet: UNet, vae: VAE, text: nn.Module, facts: dict[str, str]) -> int:
    """Write checkpoint and YAML atomically; returns the checkpoint's bytes. Too large or not finite raises."""
    tensors = checkpoint_tensors(unet, vae, text)
    make_new_words_audible(tensors)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors are not finite in fp16, the first is {broken[0]}")
    metadata = {
        "format": "pt",
        "modelspec.title": "LoRA Workshop demo checkpoint",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.description": "A small latent diffusion model in SD1 layout, trained on shapes drawn by code.",
        **facts,
    }
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    size = part.stat().st_size
    if size > SIZE_LIMIT:
        raise ValueError(f"{path.name} would have {size} bytes, more than {SIZE_LIMIT}")
    os.replace(part, path)
    text_heads = int(DEMO_TEXT["num_attention_heads"])
    path.with_suffix(".yaml").write_text(
        checkpoint_yaml(DEMO_UNET, DEMO_VAE, text_heads), encoding="utf-8", newline="\n"
    )
    return size
