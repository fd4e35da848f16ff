"""Which modules of a checkpoint a network adapts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import text_module_names, unet_module_names
from lora_ext.config.groups import NetworkSettings
from lora_ext.protocols import UserError

TargetGroup = Literal["unet", "text_encoder"]


@dataclass(frozen=True)
class Target:
    """A module to adapt: its key in files, rank, alpha (never 0), and learning-rate group."""

    key: str
    module: nn.Module
    rank: int
    alpha: float
    group: TargetGroup


def find_targets(checkpoint: Checkpoint, settings: NetworkSettings) -> list[Target]:
    """sd-scripts' plain LoRA set: every linear layer and 1×1 convolution in the U-Net's transformers, and the
    attention and MLP layers of the text encoders; sorted by key, which is the order in files.

    SD1 has 192 + 72. An alpha of 0 becomes the rank.
    """
    rank, alpha = settings.network_dim, settings.network_alpha or float(settings.network_dim)
    found: list[Target] = []
    if not settings.network_train_text_encoder_only:
        found += [Target(key, module, rank, alpha, "unet") for key, module in _unet_modules(checkpoint)]
    if not settings.network_train_unet_only:
        found += [Target(key, module, rank, alpha, "text_encoder") for key, module in _text_modules(checkpoint)]
    if not found:
        raise UserError(
            f"{checkpoint.name}: none of its modules is one that a network adapts (transformers of the U-Net, layers "
            "of the text encoder): load a Stable Diffusion checkpoint"
        )
    return sorted(found, key=lambda target: target.key)


def _unet_modules(checkpoint: Checkpoint) -> Iterator[tuple[str, nn.Module]]:
    unet = checkpoint.unet
    transformers = tuple(f"{path}." for path, module in unet.named_modules() if hasattr(module, "transformer_blocks"))
    for key, path in unet_module_names(unet, checkpoint.architecture).items():
        module = unet.get_submodule(path)
        if path.startswith(transformers) and isinstance(module, nn.Linear | nn.Conv2d):
            yield key, module


def _text_modules(checkpoint: Checkpoint) -> Iterator[tuple[str, nn.Module]]:
    for encoder in checkpoint.text_encoders:
        for key, path in text_module_names(encoder).items():
            module = encoder.module.get_submodule(path)
            if isinstance(module, nn.Linear):
                yield key, module
