"""How the tensors of a checkpoint file are called: the prefixes of its parts, by its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_ext.checkpoint.checkpoint import Architecture

Shapes = Mapping[str, Sequence[int]]
"""Tensor name → shape; names without the part's prefix where a function takes one part's tensors."""

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."


@dataclass(frozen=True)
class Layout:
    """How the names of each part's tensors begin in a checkpoint of one kind, and what its YAML may leave unsaid.

    `clip` is transformers' CLIP-L, `openclip` OpenCLIP's text tower; SDXL has both.
    """

    clip: str | None = None
    openclip: str | None = None
    unet: str = UNET_PREFIX
    vae: str = VAE_PREFIX
    latent_scale: float = 0.18215

    @property
    def parts(self) -> dict[str, str]:
        """Part → prefix, in the order of the checkpoint's text encoders."""
        found = {"unet": self.unet, "vae": self.vae, "clip": self.clip, "openclip": self.openclip}
        return {part: prefix for part, prefix in found.items() if prefix is not None}


LAYOUTS: dict[Architecture, Layout] = {
    "SD1": Layout(clip=CLIP_PREFIX),
    "SD2": Layout(openclip="cond_stage_model.model."),
    "SDXL": Layout("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.", latent_scale=0.13025),
}
PART_WORDS = {"unet": "U-Net", "vae": "VAE", "clip": "text encoder", "openclip": "OpenCLIP text encoder"}


def current_name(stored: str, layout: Layout) -> str:
    """The name of a tensor in today's files: older ones lack `text_model.` behind the prefix of CLIP-L."""
    prefix = layout.clip
    if prefix is not None and stored.startswith(prefix) and not stored.startswith(prefix + "text_model."):
        rest = stored.removeprefix(prefix)
        if rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            return f"{prefix}text_model.{rest}"
    return stored
