from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from lora_ext.protocols import UserError
from lora_ext.training.schedules import lr_factor, warmup_steps

STEPS = 37


def diffusers_factors(name: str, warmup: int) -> list[float]:
    """The factors of diffusers' scheduler over all steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)
    factors = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("ours", "theirs", "warmup"),
    [
        ("constant", "constant", 0),
        ("constant", "constant_with_warmup", 5),
        ("cosine", "cosine", 0),
        ("cosine", "cosine", 7),
        ("linear", "linear", 0),
        ("linear", "linear", 3),
        ("linear", "linear", STEPS),
    ],
)
def test_factors_are_those_of_diffusers(ours: str, theirs: str, warmup: int) -> None:
    factor = lr_factor(ours, STEPS, warmup)
    assert [factor(step) for step in range(STEPS)] == pytest.approx(diffusers_factors(theirs, warmup), abs=1e-12)


@pytest.mark.parametrize(("setting", "steps"), [(0, 0), (0.0, 0), (0.1, 100), (0.999, 999), (1, 1), (1.0, 1), (50, 50)])
def test_warmup_below_one_is_a_share(setting: float, steps: int) -> None:
    assert warmup_steps(setting, 1000) == steps


def test_unknown_schedule_is_named() -> None:
    with pytest.raises(UserError, match="'rex'.*constant, cosine, linear"):
        lr_factor("rex", 10, 0)
