"""How the learning rate runs over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from lora_ext.protocols import UserError


def warmup_steps(setting: float, total_steps: int) -> int:
    """Steps of warmup that `lr_warmup_steps` means: below 1 it is a share of all steps."""
    return int(setting * total_steps) if setting < 1 else int(setting)


def lr_factor(name: str, total_steps: int, warmup: int) -> Callable[[int], float]:
    """Factor on the learning rate for update 0, 1, …: `constant`, `cosine` or `linear`, each after a linear warmup.

    The formulas are those of diffusers' `get_scheduler`: with a warmup the very first factor is 0.
    """
    schedules: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "cosine": lambda progress: max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress))),
        "linear": lambda progress: max(0.0, 1.0 - progress),
    }
    if name not in schedules:
        raise UserError(f"lr_scheduler = {name!r}: allowed is one of {', '.join(schedules)}")
    shape = schedules[name]

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return shape((step - warmup) / max(1, total_steps - warmup))

    return factor
