"""Loss scaling for fp16, whose small gradients would otherwise be zero (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 1.0


class LossScaler:
    """torch's GradScaler with its factor on the CPU: a step waits for the device once anyway, and this adds nothing.

    The factor halves after an update with an overflow, which is left out, and doubles after 2,000 without one.
    """

    growth_interval = 2000

    def __init__(self) -> None:
        self.scale = 65536.0
        self.good_steps = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """What to run backwards from."""
        return loss * self.scale

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the factor out of the gradients, in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1.0 / self.scale)

    def update(self, finite: bool) -> None:
        """Set the factor for the next step; `finite`: all gradients of this one were numbers."""
        if not finite:
            self.scale, self.good_steps = self.scale * 0.5, 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2.0, 0

    @property
    def is_smallest(self) -> bool:
        """Whether an overflow can no longer come from the factor."""
        return self.scale <= _SMALLEST

    def state_dict(self) -> dict[str, Any]:
        """Factor, and steps since it changed."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.scale, self.good_steps = state["scale"], state["good_steps"]
