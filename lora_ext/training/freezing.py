"""The base stands still while adapters are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint


def base_modules(checkpoint: Checkpoint) -> list[nn.Module]:
    """U-Net, VAE and text encoders of a checkpoint."""
    return [checkpoint.unet, checkpoint.vae, *(encoder.module for encoder in checkpoint.text_encoders)]


@contextmanager
def frozen(checkpoint: Checkpoint) -> Iterator[None]:
    """No base parameter requires a gradient and every base module is in eval mode; afterwards each is as it was.

    Modes are set on each module itself: a host may have overridden `train()`.
    """
    roots = base_modules(checkpoint)
    modes = [(module, module.training) for root in roots for module in root.modules()]
    gradients = [(parameter, parameter.requires_grad) for root in roots for parameter in root.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in gradients:
            parameter.requires_grad_(required)
        for module, mode in modes:
            module.training = mode
