"""Numbers as sinusoids, as diffusion models are told of timesteps and sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of (b,) timesteps, cosines first: (b, dim) in fp32; an odd `dim` ends in a zero."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))
