"""Rates of parts, blocks and factors: literal tables; how they are set step by step; the curve before the start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lora_ext.config.train_config import make_config
from lora_ext.networks.forms import AdapterForm
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Target
from lora_ext.protocols import ConfigError, UserError
from lora_ext.training.optimizers import make_optimizer
from lora_ext.training.rates import (
    RateRun,
    has_rate,
    learning_rate_curve,
    learning_rates,
    parameter_groups,
    rate_groups,
)

HALF_OUT = ",".join(["1"] * 13 + ["0.5"] * 12)


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"learning_rate": 1e-4}, {"unet": 1e-4, "text_encoder": 1e-4}),
        ({"learning_rate": 1e-4, "text_encoder_lr": 5e-5}, {"unet": 1e-4, "text_encoder": 5e-5}),
        ({"unet_lr": 2e-4, "text_encoder_lr": 0}, {"unet": 2e-4}),
        ({"unet_lr": 0, "text_encoder_lr": 1e-5}, {"text_encoder": 1e-5}),
        ({"learning_rate": 0, "unet_lr": 3e-4}, {"unet": 3e-4}),
        ({"learning_rate": 1e-4, "network_train_unet_only": True}, {"unet": 1e-4}),
        ({"learning_rate": 1e-4, "network_train_text_encoder_only": True}, {"text_encoder": 1e-4}),
    ],
)
def test_rates_of_the_parts(values: dict[str, object], rates: dict[str, float]) -> None:
    assert learning_rates(make_config(values)) == rates


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"learning_rate": 0}, "unet_lr, text_encoder_lr"),
        ({"network_train_unet_only": True, "unet_lr": 0}, "unet_lr = 0"),
        ({"network_train_text_encoder_only": True, "text_encoder_lr": 0}, "text_encoder_lr = 0"),
    ],
)
def test_nothing_to_train(values: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        learning_rates(make_config(values))


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ({}, {"unet": 1e-4, "text_encoder": 1e-4}),
        ({"loraplus_lr_ratio": 4}, {"unet": 1e-4, "unet up": 4e-4, "text_encoder": 1e-4, "text_encoder up": 4e-4}),
        ({"loraplus_unet_lr_ratio": 16}, {"unet": 1e-4, "unet up": 16e-4, "text_encoder": 1e-4}),
        (
            {"loraplus_lr_ratio": 4, "loraplus_text_encoder_lr_ratio": 2, "unet_lr": 0},
            {"text_encoder": 1e-4, "text_encoder up": 2e-4},
        ),
        ({"block_lr": HALF_OUT, "text_encoder_lr": 0}, {"unet": 1e-4, "unet x0.5": 5e-5}),
        (
            {"block_lr": HALF_OUT, "loraplus_lr_ratio": 2, "network_train_unet_only": True},
            {"unet": 1e-4, "unet up": 2e-4, "unet x0.5": 5e-5, "unet x0.5 up": 1e-4},
        ),
        (
            {"text_encoder_lr": 5e-5, "text_encoder_2_lr": 2e-5},
            {"unet": 1e-4, "text_encoder": 5e-5, "text_encoder 2": 2e-5},
        ),
        ({"text_encoder_2_lr": 1e-4}, {"unet": 1e-4, "text_encoder": 1e-4}),
        ({"text_encoder_lr": 0, "text_encoder_2_lr": 2e-5}, {"unet": 1e-4, "text_encoder 2": 2e-5}),
        ({"network_preset": "unet-only"}, {"unet": 1e-4}),
        ({"network_algorithm": "loha", "loraplus_lr_ratio": 2, "network_train_unet_only": True}, {"unet": 1e-4}),
        # Block 3 is a downsampler: without LoCon nothing of it is adapted, and its factor is nobody's.
        ({"block_lr": ",".join(["1"] * 3 + ["2"] + ["1"] * 21), "text_encoder_lr": 0}, {"unet": 1e-4}),
        (
            {"block_lr": ",".join(["1"] * 3 + ["2"] + ["1"] * 21), "text_encoder_lr": 0, "conv_dim": 4},
            {"unet x2": 2e-4, "unet": 1e-4},
        ),
    ],
)
def test_groups_and_their_rates(values: dict[str, Any], groups: dict[str, float]) -> None:
    found = {group.label: group.rate for group in rate_groups(make_config(values))}
    assert found == pytest.approx(groups)


def network() -> Network:
    """Two modules of the U-Net, of blocks 4 and 20, and one of the text encoder."""
    targets = [
        Target("a", nn.Linear(3, 5), 2, 1.0, "text_encoder"),
        Target("b", nn.Linear(3, 5), 2, 1.0, "unet", 4),
        Target("c", nn.Linear(3, 5), 2, 1.0, "unet", 20),
    ]
    return Network(targets, torch.Generator().manual_seed(0))


def test_every_parameter_is_in_one_group() -> None:
    made = network()
    config = make_config({"block_lr": HALF_OUT, "loraplus_unet_lr_ratio": 2})
    groups = {group["label"]: group["params"] for group in parameter_groups(config, made.adapters)}
    adapters = made.adapters
    expected = {
        "unet": [adapters["b"].lora_down.weight],
        "unet up": [adapters["b"].lora_up.weight],
        "unet x0.5": [adapters["c"].lora_down.weight],
        "unet x0.5 up": [adapters["c"].lora_up.weight],
        "text_encoder": [adapters["a"].lora_down.weight, adapters["a"].lora_up.weight],
    }
    assert {label: [id(p) for p in found] for label, found in groups.items()} == {
        label: [id(p) for p in wanted] for label, wanted in expected.items()
    }


def test_the_second_text_encoder_has_its_own_group() -> None:
    targets = [Target(f"lora_te{number}_x", nn.Linear(3, 5), 2, 1.0, "text_encoder") for number in (1, 2)]
    made = Network(targets, torch.Generator().manual_seed(0))
    config = make_config({"text_encoder_lr": 5e-5, "text_encoder_2_lr": 2e-5, "loraplus_text_encoder_lr_ratio": 4})
    groups = {group["label"]: (group["lr"], group["part"]) for group in parameter_groups(config, made.adapters)}
    assert groups == {
        "text_encoder": (5e-5, "text_encoder"), "text_encoder up": (2e-4, "text_encoder"),
        "text_encoder 2": (2e-5, "text_encoder"), "text_encoder 2 up": (8e-5, "text_encoder"),
    }  # fmt: skip
    only_second = make_config({"text_encoder_lr": 0, "text_encoder_2_lr": 2e-5})
    assert [has_rate(only_second, target) for target in targets] == [False, True]


def test_frozen_down_factors_are_in_no_group() -> None:
    target = Target("a", nn.Linear(3, 5), 2, 1.0, "unet", 4, AdapterForm(frozen_down=True))
    made = Network([target], torch.Generator().manual_seed(0))
    (group,) = parameter_groups(make_config({"lora_fa": True}), made.adapters)
    assert [tuple(each.shape) for each in group["params"]] == [(5, 2)] and group["label"] == "unet"


def test_blocks_of_factor_0_are_in_no_group_and_convolutions_of_a_file_are() -> None:
    made = network()
    factors = ["1"] * 25
    factors[4], factors[20] = "0", "0.25"
    config = make_config({"block_lr": ",".join(factors)})
    groups = {group["label"]: len(group["params"]) for group in parameter_groups(config, made.adapters)}
    assert groups == {"unet x0.25": 2, "text_encoder": 2}
    with pytest.raises(UserError, match="block_lr is 0 for every block"):
        only = {"b": made.adapters["b"]}
        parameter_groups(config, only)
    # Block 3 is adapted in LoCon files alone: one that the training begins with may bring it without conv_dim.
    targets = [Target("d", nn.Conv2d(3, 3, 3), 2, 1.0, "unet", 3)]
    convolution = Network(targets, torch.Generator().manual_seed(0))
    config = make_config({"block_lr": ",".join(["1"] * 3 + ["2"] + ["1"] * 21)})
    assert [group["label"] for group in parameter_groups(config, convolution.adapters)] == ["unet x2"]


def rate_run(steps: int, **values: Any) -> tuple[RateRun, Network]:
    config, made = make_config(values), network()
    return RateRun(make_optimizer(parameter_groups(config, made.adapters), config.learning), config, steps), made


def test_the_schedule_sets_every_groups_rate() -> None:
    run, _ = rate_run(4, lr_scheduler="linear", text_encoder_lr=5e-5, loraplus_unet_lr_ratio=2)
    run.begin_step(1)
    assert run.rates() == pytest.approx({"unet": 7.5e-5, "unet up": 1.5e-4, "text_encoder": 3.75e-5})
    assert [group["lr"] for group in run.optimizer.param_groups] == list(run.rates().values())


@pytest.mark.parametrize(("share", "steps", "first"), [(50, 10, 5), (25, 10, 3), (1, 10, 1), (99, 10, 10)])
def test_the_text_encoder_stands_still_after_its_share(share: int, steps: int, first: int) -> None:
    run, made = rate_run(steps, stop_text_encoder_training=share, lr_scheduler="constant")
    text, unet = made.adapters["a"].lora_down.weight, made.adapters["b"].lora_down.weight
    for step in range(steps):
        run.begin_step(step)
        still = step >= first
        assert run.rates() == pytest.approx({"unet": 1e-4, "text_encoder": 0.0 if still else 1e-4})
        assert text.requires_grad is not still and unet.requires_grad


@pytest.mark.parametrize("name", ["AdamW", "AdamWScheduleFree", "Prodigy", "AdaFactor", "DAdaptAdam", "Muon", "CAME"])
def test_what_stands_still_is_not_touched(name: str) -> None:
    """No decay, no momentum that goes on."""
    run, made = rate_run(4, optimizer_type=name, stop_text_encoder_training=50, weight_decay=0.1, learning_rate=1e-2)
    text, unet = made.adapters["a"].lora_down.weight, made.adapters["b"].lora_down.weight
    seen = []
    for step in range(4):
        run.begin_step(step)
        for parameter in made.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        run.optimizer.step()
        seen.append((text.detach().clone(), unet.detach().clone()))
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[1][0], seen[2][0]) and torch.equal(seen[2][0], seen[3][0])
    assert not torch.equal(seen[2][1], seen[3][1])


@pytest.mark.parametrize("share", [None, 0, 100])
def test_without_a_share_it_is_trained_to_the_end(share: int | None) -> None:
    run, made = rate_run(3, stop_text_encoder_training=share, lr_scheduler="constant")
    run.begin_step(2)
    assert run.rates()["text_encoder"] == 1e-4 and made.adapters["a"].lora_down.weight.requires_grad


def test_d_times_lr_is_told() -> None:
    run, _ = rate_run(4, optimizer_type="Prodigy", learning_rate=1.0, lr_scheduler="linear", optimizer_args="d0=1e-4")
    run.begin_step(2)
    assert run.rates() == pytest.approx(
        {"unet": 0.5, "unet d*lr": 0.5e-4, "text_encoder": 0.5, "text_encoder d*lr": 0.5e-4}
    )


def test_a_schedulers_class_goes_as_its_own_loop() -> None:
    name, arguments = (
        "torch.optim.lr_scheduler.CyclicLR",
        "base_lr=1e-5 max_lr=1e-3 step_size_up=3 cycle_momentum=False",
    )
    values = {"lr_scheduler": name, "lr_scheduler_args": arguments}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-5, 1e-3, step_size_up=3, cycle_momentum=False)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    run, _ = rate_run(8, **values)
    found = []
    for step in range(8):
        run.begin_step(step)
        found.append(run.rates()["unet"])
    assert found == pytest.approx(expected)
    assert learning_rate_curve(make_config(values), 8)["unet"] == pytest.approx(expected)
    assert learning_rate_curve(make_config(values), 8, every=3)["unet"] == pytest.approx(expected[::3])


@pytest.mark.parametrize(
    "values",
    [
        {"lr_scheduler": "cosine", "lr_warmup_steps": 0.2},
        {"lr_scheduler": "rex", "loraplus_lr_ratio": 4, "block_lr": HALF_OUT, "stop_text_encoder_training": 60},
        {"lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR", "lr_scheduler_args": "gamma=0.9"},
        {"optimizer_type": "AdaFactor", "lr_scheduler": "adafactor"},
        {"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "cosine"},
    ],
)
def test_the_curve_is_what_is_set(values: dict[str, Any]) -> None:
    run, _ = rate_run(10, **values)
    seen: dict[str, list[float]] = {}
    for step in range(10):
        run.begin_step(step)
        for label, rate in run.rates().items():
            seen.setdefault(label, []).append(rate)
    assert learning_rate_curve(make_config(values), 10) == seen


def test_the_curve_of_a_warm_restart_in_numbers() -> None:
    values = {"lr_scheduler": "cosine", "lr_warmup_steps": 2, "text_encoder_lr": 0}
    curve = learning_rate_curve(make_config(values), 6)
    assert curve == {
        "unet": pytest.approx([0, 5e-5, 1e-4, *(5e-5 * (1 + math.cos(math.pi * n / 4)) for n in (1, 2, 3))])
    }


def test_adafactor_shows_its_own_rate() -> None:
    run, _ = rate_run(10, optimizer_type="AdaFactor", lr_scheduler="adafactor")
    run.begin_step(3)
    assert run.rates() == {"unet": 0.01, "text_encoder": 0.01}
    curve = learning_rate_curve(make_config({"optimizer_type": "AdaFactor"}), 20_000, every=10_000)
    assert curve["unet"] == pytest.approx([0.01, 1 / math.sqrt(10_001)])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr_scheduler": "nowhere.Schedule"}, "nowhere cannot be imported"),
        ({"lr_scheduler": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "goes by the loss|that is no LRScheduler"),
        ({"lr_scheduler": "torch.optim.lr_scheduler.StepLR", "lr_scheduler_args": "steps=3"}, "takes step_size, gamma"),
        ({"lr_scheduler": "torch.optim.lr_scheduler.StepLR"}, "StepLR does not accept.*step_size"),
    ],
)
def test_schedulers_that_cannot_be_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        learning_rate_curve(make_config(values), 5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer_type": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0.5}, "finds one rate.*0.5, 1"),
        ({"optimizer_type": "DAdaptAdam", "loraplus_lr_ratio": 4}, "finds one rate"),
        ({"optimizer_type": "AdamW", "lr_scheduler": "adafactor"}, "choose another schedule"),
        (
            {"optimizer_type": "AdaFactor", "optimizer_args": "relative_step=False", "lr_scheduler": "adafactor"},
            "belongs",
        ),
        ({"lr_scheduler": "piecewise_constant"}, "needs step_rules"),
        ({"optimizer_args": "weight_decay=0.1", "weight_decay": 0.2}, "leave one of them out"),
        ({"optimizer_args": "decouple"}, "no name=value pair"),
        ({"block_lr": "1,2,3"}, "block_lr has 3 numbers: SD1 and SD2 take 25, SDXL takes 23"),
        ({"block_lr": "1,two"}, "allowed are numbers"),
        ({"block_dims": ",".join(["1.5"] * 25)}, "ranks are whole"),
        ({"block_dims": ",".join(["4"] * 25), "block_lr": ",".join(["1"] * 23)}, "block_dims 25, block_lr 23"),
        ({"optimizer_type": "AdamWScheduleFree", "ema_decay": 0.99}, "leave ema_decay out"),
        ({"stop_text_encoder_training": 50, "unet_lr": 0}, "nothing to train after"),
    ],
)
def test_values_that_fight_each_other(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(values)
