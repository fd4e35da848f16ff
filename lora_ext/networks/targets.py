"""Which modules of a checkpoint a network adapts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import text_module_names, unet_module_names
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.blocks import block_index, number_of_block, numbers_by_block
from lora_ext.networks.forms import PLAIN, AdapterForm
from lora_ext.protocols import UserError

TargetGroup = Literal["unet", "text_encoder"]


@dataclass(frozen=True)
class Target:
    """A module to adapt: its key in files, rank, alpha (never 0), learning-rate group, block of the U-Net, and how."""

    key: str
    module: nn.Module
    rank: int
    alpha: float
    group: TargetGroup
    block: int | None = None
    form: AdapterForm = PLAIN


def find_targets(
    checkpoint: Checkpoint, settings: NetworkSettings, block_rates: Sequence[float] | None = None
) -> list[Target]:
    """sd-scripts' LoRA set: every linear layer and 1×1 convolution in the U-Net's transformers, and the attention and
    MLP layers of the text encoders; sorted by key, which is the order in files.

    SD1 has 192 + 72. With a rank for 3×3 convolutions (LoCon) the resnets, downsamplers and upsamplers are adapted too:
    278 + 72. An alpha of 0 becomes the rank. Blocks with rank 0, or 0 among `block_rates`, are left out.
    """
    found: list[Target] = []
    if not settings.network_train_text_encoder_only:
        found += _unet_targets(checkpoint, settings, block_rates)
    if not settings.network_train_unet_only:
        rank, alpha = settings.network_dim, settings.network_alpha or float(settings.network_dim)
        found += [Target(key, module, rank, alpha, "text_encoder") for key, module in _text_modules(checkpoint)]
    if not found:
        raise UserError(
            f"{checkpoint.name}: none of its modules is one that a network adapts (transformers of the U-Net, layers "
            "of the text encoder), or all are left out by block: load a Stable Diffusion checkpoint, and leave a block"
        )
    return sorted(found, key=lambda target: target.key)


def adapts_convolutions(settings: NetworkSettings) -> bool:
    """Whether the settings give the 3×3 convolutions a rank."""
    return settings.conv_dim is not None or bool(settings.conv_block_dims.strip())


def _unet_targets(
    checkpoint: Checkpoint, settings: NetworkSettings, block_rates: Sequence[float] | None
) -> Iterator[Target]:
    kind = checkpoint.architecture
    dims, alphas, conv_dims, conv_alphas = (
        numbers_by_block(name, getattr(settings, name), kind)
        for name in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
    )
    conv_alpha = 1.0 if settings.conv_alpha is None else settings.conv_alpha
    for key, module in _unet_modules(checkpoint, with_convolutions=adapts_convolutions(settings)):
        block = block_index(key, kind)
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            rank = int(number_of_block(conv_dims, block, settings.conv_dim or 0))
            alpha = number_of_block(conv_alphas, block, conv_alpha)
        else:
            rank = int(number_of_block(dims, block, settings.network_dim))
            alpha = number_of_block(alphas, block, settings.network_alpha)
        if rank and number_of_block(block_rates, block, 1.0):
            yield Target(key, module, rank, alpha or float(rank), "unet", block)


def _unet_modules(checkpoint: Checkpoint, with_convolutions: bool) -> Iterator[tuple[str, nn.Module]]:
    """The U-Net's linear layers and convolutions: those of its transformers, or of all its blocks."""
    unet = checkpoint.unet
    transformers = tuple(f"{path}." for path, module in unet.named_modules() if hasattr(module, "transformer_blocks"))
    for key, path in unet_module_names(unet, checkpoint.architecture).items():
        module = unet.get_submodule(path)
        inside = path.startswith(transformers) or (
            with_convolutions and block_index(key, checkpoint.architecture) is not None
        )
        if inside and isinstance(module, nn.Linear | nn.Conv2d):
            yield key, module


def _text_modules(checkpoint: Checkpoint) -> Iterator[tuple[str, nn.Module]]:
    for encoder in checkpoint.text_encoders:
        for key, path in text_module_names(encoder).items():
            module = encoder.module.get_submodule(path)
            if isinstance(module, nn.Linear):
                yield key, module
