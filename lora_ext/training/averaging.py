"""A running average of the weights that are trained (Polyak averaging, with exponential weights)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WeightAverage:
    """fp32 averages of parameters: each update moves them by 1 − decay towards the parameters.

    The decay grows with the updates, (1 + n) / (10 + n) up to the wanted one, so that the start, where a network does
    nothing yet, is forgotten (as diffusers' EMAModel).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages: list[Tensor] = [each.detach().float().clone() for each in parameters]
        self._parameters = list(parameters)

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = [each.detach().float() for each in self._parameters]
        torch._foreach_lerp_(self.averages, present, 1.0 - decay)

    @torch.no_grad()
    def put_in(self) -> None:
        """Give the parameters the averages' values; the caller keeps what they had."""
        for parameter, average in zip(self._parameters, self.averages, strict=True):
            parameter.copy_(average)
