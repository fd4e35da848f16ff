from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lora_ext.training.scaling import LossScaler

needs_cpu_scaler = pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch before 2.3 has no CPU scaler")


@needs_cpu_scaler
def test_the_factor_runs_as_that_of_torch() -> None:
    ours, weight = LossScaler(), nn.Parameter(torch.ones(2))
    ours.growth_interval = 3
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs.scale(torch.zeros(()))
    for finite in (False, True, True, False, True, True, True, True, False, False, True, True, True, True, True, True):
        weight.grad = torch.full((2,), 1.0 if finite else math.inf)
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert ours.scale == theirs.get_scale()


def test_gradients_come_out_as_without_a_factor() -> None:
    scaler = LossScaler()
    weights = [nn.Parameter(torch.tensor([0.5, -2.0])), nn.Parameter(torch.ones(3))]
    scaler.scaled((weights[0] ** 2).sum()).backward()
    scaler.unscale(weights)
    assert weights[0].grad is not None and weights[0].grad.tolist() == [1.0, -4.0] and weights[1].grad is None


def test_it_goes_on_where_it_was() -> None:
    first, second = LossScaler(), LossScaler()
    for finite in (True, False, True, True):
        first.update(finite)
    second.load_state_dict(first.state_dict())
    assert (second.scale, second.good_steps) == (32768.0, 2)
    for _ in range(15):
        second.update(False)
    assert second.is_smallest and second.scale == 1.0
