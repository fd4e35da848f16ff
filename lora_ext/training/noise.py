"""Noise and timesteps of a training step, from generators of our own: the host's random state is never touched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


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
