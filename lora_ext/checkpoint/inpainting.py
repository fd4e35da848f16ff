"""What the U-Net of an inpainting checkpoint takes beside the latents where there is no mask: all is to be painted."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.picture_encoder import PictureEncoder
from lora_ext.checkpoint.transfer import on_device

INPAINTING_CHANNELS = 9
_PIXELS_PER_LATENT = 8


class UNetInput:
    """Gives what the U-Net of a checkpoint takes for noisy latents: themselves, or with an empty picture beside them.

    Inpainting checkpoints (Rombach et al. 2022) have five channels more: a mask of ones, and the latents of the picture
    with what is masked painted grey, which is all of it. That is what the WebUI gives them in txt2img.
    """

    def __init__(self) -> None:
        self._grey: dict[tuple[int, int], Tensor] = {}  # (h, w) → (1, 4, h, w), scaled, fp32 on the CPU

    @torch.no_grad()
    def _beside(self, checkpoint: Checkpoint, size: tuple[int, int]) -> Tensor:
        """The further channels, (1, 5, h, w)."""
        if size not in self._grey:
            pixels = [length * _PIXELS_PER_LATENT for length in size]
            posterior = PictureEncoder(checkpoint)(torch.zeros(1, 3, *pixels))
            self._grey[size] = posterior.mean * checkpoint.latent_scale
        grey = self._grey[size]
        return torch.cat([torch.ones_like(grey[:, :1]), grey], dim=1)

    def __call__(self, checkpoint: Checkpoint, latents: Tensor) -> Tensor:
        """(batch, 4, h, w) -> (batch, 4 or 9, h, w)."""
        if checkpoint.input_channels != INPAINTING_CHANNELS:
            return latents
        beside = on_device(
            self._beside(checkpoint, (latents.shape[2], latents.shape[3])), latents.device, latents.dtype
        )
        return torch.cat([latents, beside.expand(len(latents), -1, -1, -1)], dim=1)
