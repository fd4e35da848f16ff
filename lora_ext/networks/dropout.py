"""What adapters leave out at random while they are trained, with sd-scripts' meaning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.config.groups import NetworkSettings


@dataclass(frozen=True)
class Dropout:
    """Shares of what is left out each time, 0 to below 1: inner values, ranks of a sample, adapters as a whole."""

    values: float = 0.0
    rank: float = 0.0
    module: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is left out."""
        return bool(self.values or self.rank or self.module)


NO_DROPOUT = Dropout()


def dropout_of(settings: NetworkSettings) -> Dropout:
    """The dropout that the settings want."""
    return Dropout(settings.network_dropout, settings.rank_dropout, settings.module_dropout)


def rank_mask(hidden: Tensor, share: float, channels_first: bool) -> Tensor:
    """0 or 1 for each sample and rank, to multiply with hidden (batch, …, rank) or (batch, rank, h, w).

    Drawn with torch's own generator of the device, so that a seeded step gives the same mask.
    """
    ranks = hidden.shape[1] if channels_first else hidden.shape[-1]
    mask = torch.rand((hidden.shape[0], ranks), device=hidden.device) > share
    inner = [1] * (hidden.ndim - 2)
    shape = (hidden.shape[0], ranks, *inner) if channels_first else (hidden.shape[0], *inner, ranks)
    return mask.view(shape).to(hidden.dtype)
