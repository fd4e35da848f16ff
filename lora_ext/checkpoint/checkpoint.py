"""A view of the loaded checkpoint: what training, applying and rendering need, owned by the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.checkpoint.schedule import NoiseSchedule

Architecture = Literal["SD1", "SD2", "SDXL"]
PredictionType = Literal["epsilon", "v_prediction"]


class TextEncoder(Protocol):
    """One text encoder of a checkpoint."""

    key_prefix: str
    """How its modules' keys begin in network files: lora_te, lora_te1, lora_te2."""

    module: nn.Module
    """The transformer; its parameters are those of the checkpoint."""

    def tokenize(self, captions: Sequence[str], max_token_length: int) -> Tensor:
        """Token ids (batch, chunks, 77), int64; chunks = max_token_length / 75."""
        ...

    def tokenize_weighted(self, captions: Sequence[str], max_token_length: int) -> tuple[Tensor, Tensor]:
        """Token ids without the brackets of emphasis, and the weight of each: both (batch, chunks, 77)."""
        ...

    def count_tokens(self, caption: str, weighted: bool = False) -> int:
        """Tokens of a caption without begin and end; of a `weighted` one without the brackets of emphasis."""
        ...

    def encode(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """States (batch, 77·chunks, width) of ids (batch, chunks, 77), each chunk encoded by itself."""
        ...

    def encode_pooled(self, ids: Tensor, clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """The same states, and SDXL's pooled vector (batch, projection), None where the encoder gives none."""
        ...

    def encode_prompts_pooled(self, prompts: Sequence[str], clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """As `encode_pooled`, of prompts with the WebUI's emphasis, for rendering; without gradients."""
        ...


@dataclass
class Checkpoint:
    """The loaded checkpoint. It owns nothing: modules, devices and dtypes are the host's.

    `unet(x, timesteps, context, y)` and `vae.encode(x) -> posterior with .mean and .logvar`, `vae.decode(z)` are
    called as ldm's; `latent_scale` is the factor between the VAE's latents and the U-Net's. `vae_path` is the file that
    stands in for the checkpoint's own VAE, None where it is its own. The U-Net of an inpainting checkpoint has 9
    `input_channels`: what it takes beside the latents is in `checkpoint/inpainting.py`. All changes of weights go
    through `ledger`.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoders: list[TextEncoder]
    schedule: NoiseSchedule
    architecture: Architecture
    prediction_type: PredictionType
    name: str
    path: Path | None
    sha256: str
    latent_scale: float = 0.18215
    vae_path: Path | None = None
    input_channels: int = 4
    ledger: PatchLedger = field(default_factory=PatchLedger)

    @property
    def device(self) -> torch.device:
        """Where the U-Net's weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the U-Net's weights."""
        return next(self.unet.parameters()).dtype

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (batch, 4, h/8, w/8) of the unscaled latents of images (batch, 3, h, w) in −1…1."""
        vae: Any = self.vae
        posterior = vae.encode(images.to(next(vae.parameters())))
        return posterior.mean, posterior.logvar

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (batch, 3, h, w) in −1…1, fp32, of scaled latents."""
        vae: Any = self.vae
        decoded: Tensor = vae.decode((latents / self.latent_scale).to(next(vae.parameters())))
        return decoded.float()
