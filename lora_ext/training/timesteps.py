"""Which timesteps are trained, and how often each comes up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_ext.config.groups import LossSettings

_BANDS = 4


def timestep_range(settings: LossSettings, steps: int) -> tuple[int, int]:
    """The first timestep that is trained and the one after the last, in a schedule of `steps`."""
    return settings.min_timestep, min(settings.max_timestep, steps)


def sample_timesteps(batch: int, steps: int, settings: LossSettings, generator: torch.Generator) -> Tensor:
    """t of each sample within the settings' range, (batch,), int64 on the CPU, distributed as they say.

    `logit_normal` takes the sigmoid of a normal with mean `logit_mean` and deviation `logit_std` (Esser et al. 2024,
    arXiv:2403.03206) as the place in the range; `sigmoid` is that of mean 0 and deviation 1. `late` takes 1 − u³ of a
    uniform u (Mou et al. 2023, arXiv:2302.08453), which favours the noisy end; `early` is its mirror image, u³.
    """
    first, end = timestep_range(settings, steps)
    if settings.timestep_sampling == "uniform":
        return torch.randint(first, end, (batch,), generator=generator)
    places = PLACES[settings.timestep_sampling](batch, settings, generator)  # (batch,) in 0…1
    return (first + (places * (end - first)).long()).clamp(max=end - 1)


def band_means(losses: Sequence[float], timesteps: Sequence[int], steps: int) -> dict[str, float]:
    """Mean loss of the samples in each quarter of a schedule ("0-250", …), without quarters that have none."""
    found: dict[int, list[float]] = {}
    for loss, timestep in zip(losses, timesteps, strict=True):
        found.setdefault(timestep * _BANDS // steps, []).append(loss)
    return {
        f"{band * steps // _BANDS}-{(band + 1) * steps // _BANDS}": sum(members) / len(members)
        for band, members in sorted(found.items())
    }


def _logit_normal(batch: int, settings: LossSettings, generator: torch.Generator) -> Tensor:
    return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.randn(batch, generator=generator))


def _sigmoid(batch: int, settings: LossSettings, generator: torch.Generator) -> Tensor:
    return torch.sigmoid(torch.randn(batch, generator=generator))


def _early(batch: int, settings: LossSettings, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) ** 3


def _late(batch: int, settings: LossSettings, generator: torch.Generator) -> Tensor:
    return 1 - _early(batch, settings, generator)


PLACES: dict[str, Callable[[int, LossSettings, torch.Generator], Tensor]] = {
    "logit_normal": _logit_normal,
    "sigmoid": _sigmoid,
    "early": _early,
    "late": _late,
}
"""How the place of a timestep in its range, 0…1, is drawn, where that is not uniform."""
