"""Noise and timesteps of a training step, from generators of our own: the host's random state is never touched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_ext.config.groups import LossSettings
from lora_ext.training.timesteps import sample_timesteps


@dataclass(frozen=True)
class Draw:
    """What is drawn for one batch: ε (batch, channels, h, w), fp32, and t (batch,), int64; on the CPU.

    `input_noise` is what the latents are mixed with where that is not ε, which stays what is to be predicted.
    """

    noise: Tensor
    timesteps: Tensor
    input_noise: Tensor | None = None


class NoiseSource(Protocol):
    """Gives a batch its noise and timesteps.

    `step` counts optimizer updates from 0, `part` the batches of an update: the same two give the same draw, so that a
    run that goes on from a saved state needs no random state.
    """

    def __call__(self, latents: Tensor, step: int, part: int) -> Draw:
        """The draw for latents (batch, channels, h, w) of the `part`th batch of an update."""
        ...


def generator_for(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one purpose ("noise", "timesteps", …), independent of the others of the same seed."""
    digest = hashlib.sha256(f"{seed}:{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def sample_noise(shape: Sequence[int], offset: float | Tensor, generator: torch.Generator) -> Tensor:
    """ε of a shape (batch, channels, h, w), fp32 on the CPU.

    `offset`, one number or (batch, channels, 1, 1), adds offset · randn(batch, channels, 1, 1): one shift for each
    sample and channel (Guttenberg 2023, "Diffusion with Offset Noise").
    """
    noise = torch.randn(tuple(shape), generator=generator)
    if isinstance(offset, Tensor) or offset:
        noise = noise + offset * torch.randn((shape[0], shape[1], 1, 1), generator=generator)
    return noise


def adaptive_offset(offset: float | Tensor, scale: float, latents: Tensor) -> Tensor:
    """offset + scale · |mean of each channel|, never below 0: (batch, channels, 1, 1) of latents (…, h, w)."""
    return (offset + scale * latents.float().mean(dim=(2, 3), keepdim=True).abs()).clamp(min=0)


def with_coarse_noise(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Noise (batch, channels, h, w) with coarser and coarser noise on top, scaled back to a deviation of 1.

    Level i adds discountⁱ · noise of 1/rⁱ of the size, r from 2 to 4 anew for each level, up to a single row or column
    (Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training"); level 0 is of the full size.
    """
    batch, channels, height, width = noise.shape
    for level in range(iterations):
        ratio = 2.0 + 2.0 * torch.rand((), generator=generator).item()
        size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        coarse = torch.randn((batch, channels, *size), generator=generator)
        noise = noise + discount**level * F.interpolate(coarse, size=(height, width), mode="bilinear")
        if 1 in size:
            break
    return noise / noise.std()


class SeededNoise:
    """The noise of a run: each draw depends on the seed, the step and the batch's place in it alone.

    What a setting adds has a stream of its own, so that it leaves the draws of the others as they are.
    """

    def __init__(self, seed: int, timesteps: int, settings: LossSettings | None = None) -> None:
        """`timesteps` is the length of the noise schedule."""
        self.seed = seed
        self.timesteps = timesteps
        self.settings = settings or LossSettings()

    def __call__(self, latents: Tensor, step: int, part: int) -> Draw:
        """Noise and timesteps, of generators of their own."""
        settings, place = self.settings, f"{step}:{part}"
        noise = sample_noise(latents.shape, self._offset(latents, place), self._generator("noise", place))
        if settings.multires_noise_iterations:
            generator = self._generator("multires", place)
            noise = with_coarse_noise(
                noise, settings.multires_noise_iterations, settings.multires_noise_discount, generator
            )
        generator = self._generator("timesteps", place)
        timesteps = sample_timesteps(latents.shape[0], self.timesteps, settings, generator)
        return Draw(noise, timesteps, self._perturbed(noise, place))

    def _generator(self, stream: str, place: str) -> torch.Generator:
        return generator_for(self.seed, f"{stream}:{place}")

    def _offset(self, latents: Tensor, place: str) -> float | Tensor:
        """Strength of the noise offset; without one there is no adaptive one either."""
        settings = self.settings
        offset: float | Tensor = settings.noise_offset
        if not settings.noise_offset:
            return 0.0
        if settings.noise_offset_random_strength:
            offset = offset * torch.rand((), generator=self._generator("noise_offset", place))
        if settings.adaptive_noise_scale is not None:
            offset = adaptive_offset(offset, settings.adaptive_noise_scale, latents)
        return offset

    def _perturbed(self, noise: Tensor, place: str) -> Tensor | None:
        """ε + γ·randn for the input alone (Ning et al. 2023, arXiv:2301.11706), None without a γ."""
        if not self.settings.ip_noise_gamma:
            return None
        generator = self._generator("ip_noise", place)
        extra = torch.randn(noise.shape, generator=generator)
        strength = torch.rand((), generator=generator) if self.settings.ip_noise_gamma_random_strength else 1.0
        return noise + self.settings.ip_noise_gamma * strength * extra
