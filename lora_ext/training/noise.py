"""Noise and timesteps of a training step, from generators of our own: the host's random state is never touched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """What is drawn for one batch: ε (batch, channels, h, w), fp32, and t (batch,), int64; on the CPU."""

    noise: Tensor
    timesteps: Tensor


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


def sample_noise(shape: Sequence[int], noise_offset: float, generator: torch.Generator) -> Tensor:
    """ε of a shape (batch, channels, h, w), fp32 on the CPU.

    `noise_offset` adds offset · randn(batch, channels, 1, 1), one shift for each sample and channel
    (Guttenberg 2023, "Diffusion with Offset Noise").
    """
    noise = torch.randn(tuple(shape), generator=generator)
    if noise_offset:
        noise = noise + noise_offset * torch.randn((shape[0], shape[1], 1, 1), generator=generator)
    return noise


def sample_timesteps(batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """t, uniform in [0, steps), one for each sample: (batch,), int64 on the CPU."""
    return torch.randint(0, steps, (batch,), generator=generator)


class SeededNoise:
    """The noise of a run: each draw depends on the seed, the step and the batch's place in it alone."""

    def __init__(self, seed: int, timesteps: int, noise_offset: float = 0.0) -> None:
        """`timesteps` is the length of the noise schedule."""
        self.seed = seed
        self.timesteps = timesteps
        self.noise_offset = noise_offset

    def __call__(self, latents: Tensor, step: int, part: int) -> Draw:
        """Noise and timesteps, of generators of their own."""
        generator = generator_for(self.seed, f"noise:{step}:{part}")
        noise = sample_noise(latents.shape, self.noise_offset, generator)
        generator = generator_for(self.seed, f"timesteps:{step}:{part}")
        return Draw(noise, sample_timesteps(latents.shape[0], self.timesteps, generator))
