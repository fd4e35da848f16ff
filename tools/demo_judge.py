"""Judges a demo checkpoint by code: are shape, colour and background of held-out prompts right, all together?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.demo.classify import Reading, classify
from lora_ext.demo.drawing import Scene, held_out_combinations, sentence
from lora_ext.host.standalone.unet import UNet
from lora_ext.host.standalone.vae import VAE
from tools.demo_diffusion_stage import encode_text
from tools.demo_vae_stage import SCALE_FACTOR


@dataclass(frozen=True)
class Judgement:
    """Shares (0 … 1) of pictures that are right; `all_right` asks for shape, colour and background together."""

    count: int
    all_right: float
    shape: float
    color: float
    background: float
    position: float


@torch.no_grad()
def sample_latents(
    unet: UNet, text: nn.Module, captions: list[str], size: tuple[int, int], steps: int, guidance: float, seed: int
) -> Tensor:
    """DDIM (Song et al. 2020) with classifier-free guidance; `size` is (width, height): scaled latents (b, 4, h, w)."""
    alphas = NoiseSchedule.scaled_linear().alphas_cumprod.float()
    timesteps = [int(step * len(alphas) / steps) + 1 for step in reversed(range(steps))]
    shape = (len(captions), 4, size[1] // 8, size[0] // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([encode_text(text, captions), encode_text(text, [""]).expand(len(captions), -1, -1)])
    for index, timestep in enumerate(timesteps):
        doubled = torch.cat([latents, latents])
        told, untold = unet(doubled, torch.full((len(doubled),), timestep), context).chunk(2)
        noise = untold + guidance * (told - untold)
        alpha = alphas[timestep]
        previous = alphas[timesteps[index + 1]] if index + 1 < steps else alphas[0]
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        latents = previous.sqrt() * clean + (1 - previous).sqrt() * noise
    return latents


@torch.no_grad()
def decode(vae: VAE, latents: Tensor) -> list[Image.Image]:
    """Scaled latents -> pictures."""
    pixels = ((vae.decode(latents / SCALE_FACTOR).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def held_out_scenes(seed: int) -> list[Scene]:
    """One scene of every combination that training never showed."""
    rng = random.Random(seed)
    return [Scene.random(rng, combination) for combination in held_out_combinations()]


def judge(
    unet: UNet, text: nn.Module, vae: VAE, steps: int = 20, guidance: float = 5.0, seed: int = 0
) -> tuple[Judgement, list[Image.Image]]:
    """Sample every held-out prompt once at 64 px; returns the shares and the pictures."""
    scenes = held_out_scenes(seed)
    captions = [sentence(f"{scene.color} {scene.shape}", scene.background, scene.place, True, True) for scene in scenes]
    pictures = decode(vae, sample_latents(unet, text, captions, (64, 64), steps, guidance, seed))
    return judgement(scenes, [classify(picture) for picture in pictures]), pictures


def judgement(scenes: list[Scene], readings: list[Reading]) -> Judgement:
    """Compare what was asked for with what the pictures show."""
    pairs = list(zip(scenes, readings, strict=True))
    shape = [scene.shape == reading.shape for scene, reading in pairs]
    color = [scene.color == reading.color for scene, reading in pairs]
    background = [scene.background == reading.background for scene, reading in pairs]
    together = [all(parts) for parts in zip(shape, color, background, strict=True)]
    position = [scene.place.position == reading.position for scene, reading in pairs]
    count = len(pairs)
    return Judgement(count, *(sum(right) / count for right in (together, shape, color, background, position)))


def contact_sheet(pictures: list[Image.Image], path: Path, columns: int = 12) -> None:
    """Write equally sized pictures side by side, as a PNG."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * (width + 2), -(-len(pictures) // columns) * (height + 2)), "black")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + 2), index // columns * (height + 2)))
    sheet.save(path)
