"""Stage 1 of the demo checkpoint: the autoencoder, trained on plain scenes and random doodles."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_ext.demo.drawing import PALETTE, SUPERSAMPLING, Scene
from lora_ext.host.standalone.vae import VAE, AttnBlock, ResnetBlock, VAEConfig

DEMO_VAE = VAEConfig(ch=96, ch_mult=(1, 1, 1, 1), num_res_blocks=0)
SCALE_FACTOR = 0.18215


@dataclass(frozen=True)
class VAEStage:
    """How long and how fast the autoencoder learns: first on crops, which cost a quarter, then on whole pictures."""

    crop_steps: int = 1800
    whole_steps: int = 500
    learning_rate: float = 1e-3
    warmup: int = 20
    kl_weight: float = 2e-4
    crop: int = 32
    crop_batch: int = 16
    pool: int = 640
    whole_sizes: tuple[tuple[tuple[int, int], int, float], ...] = (
        ((64, 64), 6, 0.7),
        ((96, 64), 4, 0.1),
        ((64, 96), 4, 0.1),
        ((128, 128), 2, 0.1),
    )

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.crop_steps + self.whole_steps


VAE_ROUNDS = (VAEStage(), VAEStage(crop_steps=1400, whole_steps=1100, learning_rate=1.2e-3))


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Pictures of one size -> (b, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1.0


def doodle(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """One to four random ellipses, rectangles and polygons in random colours on a plain background."""
    width, height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    canvas = Image.new("RGB", (width, height), _doodle_color(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(1, 4)):
        extent = rng.uniform(0.2, 0.7) * min(width, height)
        left, top = rng.uniform(0, width - extent / 2), rng.uniform(0, height - extent / 2)
        kind, color = rng.randrange(3), _doodle_color(rng)
        if kind == 0:
            pen.ellipse((left, top, left + extent, top + extent * rng.uniform(0.5, 1.0)), fill=color)
        elif kind == 1:
            pen.rectangle((left, top, left + extent, top + extent * rng.uniform(0.3, 1.0)), fill=color)
        else:
            corners = [(left + rng.random() * extent, top + rng.random() * extent) for _ in range(rng.randint(3, 6))]
            pen.polygon(corners, fill=color)
    return canvas.resize(size, Image.Resampling.BOX)


def _doodle_color(rng: random.Random) -> tuple[int, int, int]:
    if rng.random() < 0.6:
        return rng.choice(list(PALETTE.values()))
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def draw_batch(rng: random.Random, size: tuple[int, int], count: int) -> Tensor:
    """Scenes and doodles, 55 to 45: (count, 3, h, w) in [-1, 1]."""
    pictures = [Scene.random(rng).draw(size) if rng.random() < 0.55 else doodle(rng, size) for _ in range(count)]
    return to_tensor(pictures)


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 at three scales, and L1 of the horizontal and vertical differences (edges)."""
    loss = (decoded - images).abs().mean() + 0.5 * (decoded - images).square().mean()
    for axis in (2, 3):
        loss = loss + 0.5 * (decoded.diff(dim=axis) - images.diff(dim=axis)).abs().mean()
    for factor in (4, 8):
        loss = loss + 0.5 * (F.avg_pool2d(decoded, factor) - F.avg_pool2d(images, factor)).abs().mean()
    return loss


def cosine_factor(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Linear warmup, then a half cosine from 1 to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return float(floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * progress)))


def initialize(vae: VAE) -> None:
    """Begin as an average-pooling encoder and a nearest-neighbour decoder whose group norms let flat colours through.

    A group norm over few channels removes each group's mean and scale. Channels are laid out in threes (a, −a/2 + 1,
    −a/2 − 1) before both `norm_out`: their mean is 0 and their scale hardly depends on a, so that a survives.
    """
    for name, module in vae.named_modules():
        if isinstance(module, ResnetBlock):
            zero_(module.conv2)
        elif isinstance(module, AttnBlock):
            zero_(module.proj_out)
        elif name.endswith(("downsample.conv", "upsample.conv")):
            assert isinstance(module, torch.nn.Conv2d) and module.bias is not None
            identity = torch.eye(module.out_channels)
            module.weight *= 0.3
            module.bias.zero_()
            if "down" in name:
                module.weight[:, :, :2, :2] += identity[:, :, None, None] / 4
            else:
                module.weight[:, :, 1, 1] += identity
    for resampler in (vae.encoder.down[-2].downsample, vae.decoder.up[1].upsample):
        weight, bias = resampler.conv.weight, resampler.conv.bias
        weight[1::3] = weight[2::3] = -0.5 * weight[::3]
        bias[1::3], bias[2::3] = 1.0, -1.0
    channels = vae.config.embed_dim
    assert vae.quant_conv.bias is not None
    vae.quant_conv.weight[channels:] *= 0.1  # the posterior starts narrow and alike everywhere
    vae.quant_conv.bias[channels:] = -4.0


def zero_(layer: torch.nn.Conv2d) -> None:
    """Set weights and bias to zero."""
    for parameter in layer.parameters():
        parameter.zero_()


def training_pictures(stage: VAEStage, rng: random.Random) -> Iterator[Tensor]:
    """One batch a step: crops of a pool of pictures that is drawn anew every 200 steps, then whole pictures."""
    pool = torch.empty(0)
    for step in range(stage.crop_steps):
        if step % 200 == 0:
            pool = draw_batch(rng, (64, 64), stage.pool)
        chosen = pool[rng.sample(range(stage.pool), stage.crop_batch)]
        top, left = (rng.randrange(0, 64 - stage.crop + 1) for _ in range(2))
        yield chosen[:, :, top : top + stage.crop, left : left + stage.crop]
    for _ in range(stage.whole_steps):
        size, count, _ = rng.choices(stage.whole_sizes, weights=[entry[2] for entry in stage.whole_sizes])[0]
        yield draw_batch(rng, size, count)


def train_vae(rounds: tuple[VAEStage, ...], seed: int, log: Callable[[str], None]) -> tuple[VAE, dict[str, float]]:
    """Train from scratch, round after round; returns the autoencoder with standardised latents, and its figures."""
    torch.manual_seed(seed)
    vae = VAE(DEMO_VAE)
    with torch.no_grad():
        initialize(vae)
    started, loss = time.monotonic(), 0.0
    for number, stage in enumerate(rounds):
        loss = train_round(vae, stage, seed + number, log)
        standardize_latents(vae, random.Random(seed + number + 1))
    figures = reconstruction_figures(vae, random.Random(seed + len(rounds) + 1))
    steps = sum(stage.steps for stage in rounds)
    return vae.eval(), figures | {"steps": float(steps), "seconds": time.monotonic() - started, "loss": loss}


def train_round(vae: VAE, stage: VAEStage, seed: int, log: Callable[[str], None]) -> float:
    """One warmup and decay of the learning rate; returns the running loss at its end."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    started, average = time.monotonic(), 0.0
    for step, images in enumerate(training_pictures(stage, random.Random(seed))):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * cosine_factor(step, stage.steps, stage.warmup)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            posterior = vae.encode(images)
            decoded = vae.decode(posterior.sample())
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        loss = reconstruction_loss(decoded.float(), images) + stage.kl_weight * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 0 or step == stage.steps - 1:
            error = (decoded.float() - images).abs().mean().item()
            log(
                f"vae step {step} loss {average:.4f} error {error:.4f} kl {divergence.item():.2f} "
                f"{time.monotonic() - started:.0f} s"
            )
    return average


@torch.no_grad()
def standardize_latents(vae: VAE, rng: random.Random) -> None:
    """Fold into quant_conv and post_quant_conv what gives each channel mean 0 and std 1 / SCALE_FACTOR."""
    means = torch.cat([vae.encode(draw_scenes(rng, (64, 64), 32)).mean for _ in range(8)])
    center = means.mean(dim=(0, 2, 3))
    factor = 1.0 / (SCALE_FACTOR * means.std(dim=(0, 2, 3)))
    channels = vae.config.embed_dim
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None and post.bias is not None
    post.bias += post.weight[:, :, 0, 0] @ center
    post.weight /= factor[None, :, None, None]
    quant.weight[:channels] *= factor[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - center) * factor
    quant.bias[channels:] += 2 * factor.log()


def draw_scenes(rng: random.Random, size: tuple[int, int], count: int) -> Tensor:
    """Scenes alone: (count, 3, h, w) in [-1, 1]."""
    return to_tensor([Scene.random(rng).draw(size) for _ in range(count)])


@torch.no_grad()
def reconstruction_figures(vae: VAE, rng: random.Random) -> dict[str, float]:
    """Mean absolute error (of 255) of scenes and doodles at 64 px, and the scaled latents' statistics."""
    scenes = draw_scenes(rng, (64, 64), 64)
    doodles = to_tensor([doodle(rng, (64, 64)) for _ in range(64)])
    posterior = vae.encode(scenes)
    return {
        "scene_error": (vae.decode(posterior.mean) - scenes).abs().mean().item() * 127.5,
        "doodle_error": (vae.decode(vae.encode(doodles).mean) - doodles).abs().mean().item() * 127.5,
        "latent_mean": (posterior.mean * SCALE_FACTOR).mean().item(),
        "latent_std": (posterior.mean * SCALE_FACTOR).std().item(),
        "posterior_std": (torch.exp(0.5 * posterior.logvar) * SCALE_FACTOR).mean().item(),
    }
