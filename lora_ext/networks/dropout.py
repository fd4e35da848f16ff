"""What adapters leave out at random while they are trained, with sd-scripts' meaning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.config.groups import NetworkSettings


@dataclass(frozen=True)
class Dropout:
    """Shares of what is left out each time, 0 to below 1: inner values, ranks of a sample, adapters as a whole.

    `scaled`: what is left of the ranks makes up for the others, also in algorithms that do not do so by themselves.
    """

    values: float = 0.0
    rank: float = 0.0
    module: float = 0.0
    scaled: bool = False

    @property
    def active(self) -> bool:
        """Whether anything is left out."""
        return bool(self.values or self.rank or self.module)


NO_DROPOUT = Dropout()


def dropout_of(settings: NetworkSettings) -> Dropout:
    """The dropout that the settings want."""
    return Dropout(
        settings.network_dropout, settings.rank_dropout, settings.module_dropout, settings.rank_dropout_scale
    )


def rank_mask(hidden: Tensor, share: float, channels_first: bool) -> Tensor:
    """0 or 1 for each sample and rank, to multiply with hidden (batch, …, rank) or (batch, rank, h, w).

    Drawn with torch's own generator of the device, so that a seeded step gives the same mask.
    """
    ranks = hidden.shape[1] if channels_first else hidden.shape[-1]
    mask = torch.rand((hidden.shape[0], ranks), device=hidden.device) > share
    inner = [1] * (hidden.ndim - 2)
    shape = (hidden.shape[0], ranks, *inner) if channels_first else (hidden.shape[0], *inner, ranks)
    return mask.view(shape).to(hidden.dtype)


def row_mask(rows: int, dropout: Dropout) -> Tensor:
    """0 or 1 for each row of a ΔW (rows,), fp32 on the CPU, as LyCORIS leaves rows out; scaled up where wanted."""
    mask = (torch.rand(rows) > dropout.rank).float()
    return mask / mask.mean().clamp(min=1.0 / rows) if dropout.scaled else mask
