"""The WebUI's loaded model as a `Checkpoint`: its own modules, nothing copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import sd_vae

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint, PredictionType, TextEncoder
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.openclip import OpenClipTextEncoder
from lora_ext.host.webui.first_stage import FirstStage
from lora_ext.protocols import UserError


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
    """The modules that the WebUI renders with; raises UserError where the model is not an SD1, SD2 or SDXL one.

    The modules are called directly: `apply_model`, `get_learned_conditioning` and `encode_first_stage` bring the
    WebUI's casts, its prompt grammar and its option handling with them, and of SDXL `DiffusionEngine.forward` wants a
    loss function, and the conditioner encodes under `no_grad` and takes crops from the options.
    """
    info = sd_model.sd_checkpoint_info
    architecture = _supported_architecture(sd_model)
    unet, vae = sd_model.model.diffusion_model, sd_model.first_stage_model
    return Checkpoint(
        unet=unet,
        vae=FirstStage(vae) if architecture == "SDXL" else vae,
        text_encoders=_text_encoders(sd_model, architecture),
        schedule=noise_schedule(sd_model),
        architecture=architecture,
        prediction_type=prediction_type_of(sd_model),
        name=info.name_for_extra,
        path=Path(info.filename),
        sha256=info.sha256 or "",
        latent_scale=float(sd_model.scale_factor),
        vae_path=Path(sd_vae.loaded_vae_file) if sd_vae.loaded_vae_file else None,
        input_channels=unet.in_channels,
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


def _supported_architecture(sd_model: Any) -> Architecture:
    """SD1, SD2 or SDXL; raises UserError where the model is another one, or one of these with a part that differs."""
    name = sd_model.sd_checkpoint_info.name_for_extra
    supported: dict[str, Architecture] = {"SD1": "SD1", "SD2": "SD2", "SDXL": "SDXL"}
    architecture = architecture_of(sd_model)
    if architecture not in supported:
        raise UserError(f"{name} is a checkpoint of kind {architecture}: only SD1, SD2 and SDXL ones are supported")
    if architecture == "SDXL" and len(_text_embedders(sd_model)) != 2:
        raise UserError(f"{name} is SDXL's refiner, which has one text encoder: load an SDXL base checkpoint")
    if architecture == "SD1" and not hasattr(_unwrapped(sd_model.cond_stage_model), "transformer"):
        raise UserError(f"{name} has a text encoder of another kind than Stable Diffusion's (AltDiffusion?)")
    if architecture == "SD2" and sd_model.model.diffusion_model.num_classes is not None:
        raise UserError(f"{name} is an unCLIP checkpoint, which takes a picture besides the text: load another one")
    return supported[architecture]


def _text_encoders(sd_model: Any, architecture: Architecture) -> list[TextEncoder]:
    if architecture == "SDXL":
        first, second = _text_embedders(sd_model)
        return [
            HFClipTextEncoder(first.transformer, "lora_te1", first.tokenizer, penultimate=True),
            OpenClipTextEncoder(second.model, "lora_te2", pools=True),
        ]
    embedder = _unwrapped(sd_model.cond_stage_model)
    if architecture == "SD2":
        return [OpenClipTextEncoder(embedder.model, penultimate=embedder.layer == "penultimate")]
    return [HFClipTextEncoder(embedder.transformer, tokenizer=embedder.tokenizer)]


def _text_embedders(sd_model: Any) -> list[Any]:
    """SDXL's embedders of texts; the others embed sizes."""
    embedders = [_unwrapped(embedder) for embedder in sd_model.conditioner.embedders]
    return [each for each in embedders if hasattr(each, "transformer") or hasattr(each, "model")]


def _unwrapped(embedder: Any) -> Any:
    """A text encoder out of what the WebUI puts around it for its prompts."""
    return getattr(embedder, "wrapped", embedder)
