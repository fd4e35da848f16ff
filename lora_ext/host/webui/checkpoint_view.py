"""The WebUI's loaded model as a `Checkpoint`: its own modules, nothing copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import sd_vae

from lora_ext.checkpoint.checkpoint import Checkpoint, PredictionType
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.protocols import UserError

_LATENT_CHANNELS = 4


def architecture_of(sd_model: Any) -> str:
    """SD1, SD2, SDXL or SD3."""
    for flag, name in (("is_sd3", "SD3"), ("is_sdxl", "SDXL"), ("is_sd2", "SD2"), ("is_sd1", "SD1")):
        if getattr(sd_model, flag, False):
            return name
    return "unknown"


def prediction_type_of(sd_model: Any) -> PredictionType:
    """What the U-Net predicts."""
    return "v_prediction" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"


def checkpoint_view(sd_model: Any) -> Checkpoint:
    """The modules that the WebUI renders with; raises UserError where the model is not an SD1 text-to-image one.

    The modules are called directly: `apply_model`, `get_learned_conditioning` and `encode_first_stage` bring the
    WebUI's casts, its prompt grammar and its option handling with them.

    What is particular to other kinds cannot bite as long as they are refused here: SDXL's `DiffusionEngine.forward`,
    which wants a loss function, its conditioner, which encodes under `no_grad` and reads crops from the options, and
    the fused attention weights of OpenCLIP (SD2, SDXL), past which an adapter's forward is never called.
    """
    info = sd_model.sd_checkpoint_info
    architecture = architecture_of(sd_model)
    if architecture != "SD1":
        raise UserError(f"{info.name_for_extra} is a checkpoint of kind {architecture}: only SD1 ones are supported")
    unet = sd_model.model.diffusion_model
    channels = unet.in_channels
    if channels != _LATENT_CHANNELS:
        raise UserError(
            f"{info.name_for_extra} has a U-Net of {channels} input channels (inpainting or editing): "
            f"load a checkpoint with {_LATENT_CHANNELS}"
        )
    encoder = getattr(sd_model.cond_stage_model, "wrapped", sd_model.cond_stage_model)
    return Checkpoint(
        unet=unet,
        vae=sd_model.first_stage_model,
        text_encoders=[HFClipTextEncoder(encoder.transformer, tokenizer=encoder.tokenizer)],
        schedule=noise_schedule(sd_model),
        architecture="SD1",
        prediction_type=prediction_type_of(sd_model),
        name=info.name_for_extra,
        path=Path(info.filename),
        sha256=info.sha256 or "",
        latent_scale=float(sd_model.scale_factor),
        vae_path=Path(sd_vae.loaded_vae_file) if sd_vae.loaded_vae_file else None,
    )


def noise_schedule(sd_model: Any) -> NoiseSchedule:
    """The schedule that the checkpoint was trained with.

    `model.half()` rounds the buffers √ᾱ, and options change `alphas_cumprod`; `alphas_cumprod_original` is neither.
    It is fp32: Stable Diffusion's own schedule is taken in fp64 where the two agree.
    """
    original = getattr(sd_model, "alphas_cumprod_original", sd_model.alphas_cumprod)
    alphas = original.detach().to("cpu", torch.float64)
    usual = NoiseSchedule.scaled_linear(steps=alphas.shape[0])
    return usual if torch.allclose(alphas, usual.alphas_cumprod, rtol=1e-4, atol=1e-6) else NoiseSchedule(alphas)
