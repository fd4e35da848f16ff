"""Runs inside the WebUI under test: its model beside our view of it, on texts, latents and pictures."""

from __future__ import annotations

import torch
from modules import call_queue, devices, prompt_parser, script_callbacks, sd_models

from lora_ext.checkpoint.conditioning import Frame, encode_prompts
from lora_ext.checkpoint.inpainting import UNetInput
from lora_ext.host.webui.plain_unet import plain_unet
from lora_ext.host.webui.state import get_host


def _largest(left, right):
    return float((left.float() - right.float()).abs().max() / right.float().abs().max())


@torch.no_grad()
def compare(prompts, size):
    """Largest relative differences of the text's states, SDXL's vector, the U-Net's prediction, and the VAE's work."""
    model, checkpoint = sd_models.model_data.sd_model, get_host().checkpoint()
    theirs = model.get_learned_conditioning(prompt_parser.SdConditioning(prompts, width=size[0], height=size[1]))
    ours = encode_prompts(checkpoint.text_encoders, prompts)
    vector = ours.vector([Frame.whole(tuple(size))] * len(prompts))
    states = theirs["crossattn"] if isinstance(theirs, dict) else theirs
    found = {"states": _largest(ours.context, states)}
    if vector is not None:
        found["vector"] = _largest(vector, theirs["vector"])
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(len(prompts), 4, size[1] // 8, size[0] // 8, generator=generator)
    timesteps = torch.arange(1, 1 + len(prompts)) * 100
    whole = UNetInput()(checkpoint, latents)
    given = theirs if isinstance(theirs, dict) else {"c_crossattn": [states], "c_concat": [whole[:, 4:]]}
    with devices.autocast():
        expected = model.apply_model(latents, timesteps, given)
    with plain_unet(checkpoint.unet, checkpoint.vae):
        extra = {} if vector is None else {"y": vector}
        found["U-Net"] = _largest(checkpoint.unet(whole, timesteps, ours.context, **extra), expected)
    pictures = torch.rand(1, 3, size[1], size[0], generator=generator) * 2 - 1
    mean, logvar = checkpoint.encode_images(pictures)
    torch.manual_seed(3)
    expected = model.get_first_stage_encoding(model.encode_first_stage(pictures))
    torch.manual_seed(3)
    drawn = (mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape)) * checkpoint.latent_scale
    found["latents"] = _largest(drawn, expected)
    found["pictures"] = _largest(checkpoint.decode_latents(drawn), model.decode_first_stage(expected))
    return found


def started(_, app):
    @app.post("/lw-probe/bases/compare")
    def route_compare(body: dict):
        with call_queue.queue_lock:
            return compare(body["prompts"], body["size"])


script_callbacks.on_app_started(started)
