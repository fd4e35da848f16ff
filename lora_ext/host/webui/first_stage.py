"""The VAE of an SDXL checkpoint in the WebUI, with a posterior to draw from."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class Moments(NamedTuple):
    """Mean and log-variance of unscaled latents, each (batch, 4, h/8, w/8)."""

    mean: Tensor
    logvar: Tensor


class FirstStage(nn.Module):
    """sgm's VAE called as ldm's: sgm's own `encode` draws at once, with the global random state.

    The layers are the checkpoint's own, under their names.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def encode(self, images: Tensor) -> Moments:
        """The posterior of images (batch, 3, h, w) in −1…1."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Moments(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (batch, 3, h, w) of unscaled latents."""
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images
