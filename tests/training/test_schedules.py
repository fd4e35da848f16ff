"""The schedules' factors, against diffusers' and transformers' schedulers and literal numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule, get_scheduler
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.config.groups import LearningSettings
from lora_ext.config.groups.learning import SCHEDULES
from lora_ext.protocols import UserError
from lora_ext.training.schedules import lr_factor, warmup_steps

STEPS = 37


def factors(name: str, steps: int = STEPS, **settings: Any) -> list[float]:
    factor = lr_factor(LearningSettings(lr_scheduler=name, **settings), steps)
    return [factor(step) for step in range(steps)]


def followed(scheduler_of: Any) -> list[float]:
    """The factors of another program's scheduler over all steps, at a rate of 1e-3."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = scheduler_of(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"] / 1e-3)
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs", "warmup", "settings", "arguments"),
    [
        ("constant", "constant", 0, {}, {}),
        ("constant_with_warmup", "constant_with_warmup", 5, {}, {}),
        ("cosine", "cosine", 0, {}, {}),
        ("cosine", "cosine", 7, {}, {}),
        ("linear", "linear", 0, {}, {}),
        ("linear", "linear", 3, {}, {}),
        ("linear", "linear", STEPS, {}, {}),
        ("cosine_with_restarts", "cosine_with_restarts", 4, {"lr_scheduler_num_cycles": 4}, {"num_cycles": 4}),
        ("cosine_with_restarts", "cosine_with_restarts", 0, {}, {"num_cycles": 1}),
        ("polynomial", "polynomial", 5, {}, {"power": 1.0}),
        ("polynomial", "polynomial", 0, {"lr_scheduler_power": 0.3}, {"power": 0.3}),
    ],
)
def test_factors_are_those_of_diffusers(
    ours: str, theirs: str, warmup: int, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    expected = followed(
        lambda optimizer: get_scheduler(
            theirs, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS, **arguments
        )
    )
    found = factors(ours, learning_rate=1e-3, lr_warmup_steps=float(warmup), **settings)
    assert found == pytest.approx(expected, abs=1e-12)


def test_piecewise_constant_is_diffusers() -> None:
    rules = "1:10,0.1:20,0.01:30,0.005"
    expected = followed(lambda optimizer: get_piecewise_constant_schedule(optimizer, rules))
    found = factors("piecewise_constant", lr_scheduler_args=f"step_rules={rules}")
    assert found == pytest.approx(expected)
    assert [found[step] for step in (9, 10, 19, 20, 29, 30)] == [1, 0.1, 0.1, 0.01, 0.01, 0.005]


@pytest.mark.parametrize(("warmup", "timescale"), [(6, None), (6, 20), (0, None)])
def test_inverse_sqrt_is_transformers(warmup: int, timescale: int | None) -> None:
    from transformers.optimization import get_inverse_sqrt_schedule

    expected = followed(lambda optimizer: get_inverse_sqrt_schedule(optimizer, warmup, timescale or warmup or 10_000))
    found = factors("inverse_sqrt", lr_warmup_steps=float(warmup), lr_scheduler_timescale=timescale)
    assert found == pytest.approx(expected)


def test_cosine_with_min_lr() -> None:
    found = factors("cosine_with_min_lr", 9, lr_scheduler_min_lr_ratio=0.1, lr_warmup_steps=1.0)
    half = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert found == pytest.approx([0.0, *half])
    # Run in transformers 4.54.1 with num_cycles=0.5, min_lr_rate=0.1: 4 steps of warmup, 12 in all.
    theirs = [0.0, 0.25, 0.5, 0.75, 1.0, 0.9657457896, 0.8681980515, 0.7222075445, 0.55, 0.3777924555, 0.2318019485]
    found = factors("cosine_with_min_lr", 12, lr_scheduler_min_lr_ratio=0.1, lr_warmup_steps=4.0)
    assert found[:11] == pytest.approx(theirs)


def test_warmup_stable_decay() -> None:
    found = factors("warmup_stable_decay", 10, lr_warmup_steps=2.0, lr_decay_steps=4.0, lr_scheduler_min_lr_ratio=0.2)
    assert found == pytest.approx([0.2, 0.6, 1, 1, 1, 1, 1, 0.8828427125, 0.6, 0.3171572875])


def test_rex_is_the_papers() -> None:
    # (1 − t/T) / (1/2 + 1/2 (1 − t/T)): 3/4 → 6/7, 1/2 → 2/3, 1/4 → 2/5.
    assert factors("rex", 4) == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5])
    assert factors("rex", 4, lr_scheduler_min_lr_ratio=0.5) == pytest.approx([1, 13 / 14, 5 / 6, 7 / 10])


def test_warm_restarts_rise_in_each_cycle_and_decay() -> None:
    found = factors(
        "cosine_annealing_warmup_restarts", 22, lr_warmup_steps=2.0, lr_scheduler_num_cycles=2,
        lr_cycle_warmup_steps=2.0, lr_cycle_decay=0.5,
    )  # fmt: skip
    assert found[:3] == [0.0, 0.5, 1.0]
    assert found[2:12] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert found[12:15] == pytest.approx([0.0, 0.25, 0.5])
    assert found[14:22] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])
    shares = factors(
        "cosine_annealing_warmup_restarts", 20, lr_scheduler_num_cycles=2, lr_cycle_warmup_steps=0.2,
        lr_scheduler_min_lr_ratio=0.1,
    )  # fmt: skip
    assert shares[10:13] == pytest.approx([0.1, 0.55, 1.0])


def test_the_guides_names_for_warm_restarts() -> None:
    arguments = "T_0=10 gamma_min_lr=0.99 decay=1 down_factor=0.5 warmup_steps=4 cycle_warmup=2 init_lr_ground=True"
    name = "cosine_annealing_warmup.CosineAnnealingWarmupRestarts"
    found = factors(name, 30, lr_scheduler_args=arguments)
    assert found[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert found[13] == pytest.approx(0.99**9 * (0.5 + 0.25 * (1 + math.cos(math.pi * 0.9))))
    assert found[14:17] == pytest.approx([0.99**10 * 0.5, 0.99**11 * 0.75, 0.99**12])


@pytest.mark.parametrize(("setting", "steps"), [(0, 0), (0.0, 0), (0.1, 100), (0.999, 999), (1, 1), (1.0, 1), (50, 50)])
def test_warmup_below_one_is_a_share(setting: float, steps: int) -> None:
    assert warmup_steps(setting, 1000) == steps


@given(
    name=st.sampled_from([name for name in SCHEDULES if name != "piecewise_constant"]),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    cycles=st.integers(1, 5),
    lowest=st.none() | st.floats(0, 1),
    cycle_warmup=st.floats(0, 20),
)
def test_factors_lie_between_0_and_1(
    name: str, steps: int, warmup: float, cycles: int, lowest: float | None, cycle_warmup: float
) -> None:
    settings = LearningSettings(
        lr_scheduler=name, lr_warmup_steps=warmup, lr_scheduler_num_cycles=cycles, lr_decay_steps=0.2,
        lr_scheduler_min_lr_ratio=lowest, lr_cycle_warmup_steps=cycle_warmup, lr_cycle_decay=0.7,
    )  # fmt: skip
    if name == "cosine_annealing_warmup_restarts" and steps - int(warmup * steps) < cycles:
        with pytest.raises(UserError, match="cycles of"):
            lr_factor(settings, steps)
        return
    factor = lr_factor(settings, steps)
    assert all(0.0 <= factor(step) <= 1.0 + 1e-12 for step in range(steps))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_scheduler": "rexx"}, r"'rexx'.*constant, .*rex.*package\.Class"),
        ({"lr_scheduler_args": "num_cycles=3"}, "cosine has no num_cycles; it takes none"),
        ({"lr_scheduler": "piecewise_constant", "lr_scheduler_args": "step_rules=1-10"}, "write factor:step pairs"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-8}, "raise the rate"),
        ({"lr_scheduler": "cosine_annealing_warmup_restarts", "lr_scheduler_args": "T_0=0"}, "cycles of 0 steps"),
        ({"lr_scheduler": "cosine_annealing_warmup_restarts", "lr_scheduler_args": "T_0=ten"}, "T_0 = ten: allowed"),
        ({"lr_scheduler": "cosine_annealing_warmup_restarts", "lr_scheduler_args": "decay=1,2"}, "decay = .1, 2.: all"),
    ],
)
def test_what_cannot_be_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        lr_factor(LearningSettings(**settings), 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("T_0=abc", "T_0 = abc: allowed are numbers from 0 on"),
        ("T_0=nan", "T_0 = nan: allowed"),
        ("T_0=10 T_mult=1,2", "T_mult = "),
        ("T_0=10 decay=None", "decay = None: allowed are numbers from 0 to 1"),
        ("T_0=10 warmup_steps=-3", "warmup_steps = -3: allowed"),
        ("T_0=10 gamma_min_lr=1e30", "gamma_min_lr = 1e.30: allowed are numbers from 0 to 1"),
    ],
)
def test_arguments_of_the_warm_restarts_that_are_no_numbers_are_refused(arguments: str, words: str) -> None:
    settings = LearningSettings(lr_scheduler="cosine_annealing_warmup_restarts", lr_scheduler_args=arguments)
    with pytest.raises(UserError, match=words):
        lr_factor(settings, 100)
