"""Every optimizer that is offered, and what is said of those that cannot be had here."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from lora_ext.config.groups import LearningSettings
from lora_ext.config.groups.learning import OPTIMIZERS
from lora_ext.protocols import UserError
from lora_ext.training.optimizers import check_optimizer, make_optimizer, optimizer_problem, optimizer_title

CPU = torch.device("cpu")
OPTIONAL = {
    "bitsandbytes": [name for name in OPTIMIZERS if name.endswith("8bit") or name.startswith("Paged")],
    "dadaptation": ["DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdan", "DAdaptAdanIP"],
    "prodigyplus": ["ProdigyPlusScheduleFree"],
}
MISSING = {
    name: package for package, names in OPTIONAL.items() if importlib.util.find_spec(package) is None for name in names
}

LION_UP = [0.582637, 0.167898, 0.343953, 0.316963]
PRODIGY_UP = [0.0576881, 0.0576947, 0.0577331, -0.0578748]


def groups_of(*parameters: nn.Parameter, rate: float = 0.01) -> list[dict[str, Any]]:
    return [
        {"params": [each], "lr": rate, "initial_lr": rate, "part": "unet", "label": str(number)}
        for number, each in enumerate(parameters)
    ]


def factors() -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(4, 6, generator=generator)), nn.Parameter(torch.zeros(5, 4))


def descend(optimizer: torch.optim.Optimizer, down: nn.Parameter, up: nn.Parameter, steps: int) -> list[float]:
    """Losses of fitting up @ down to a matrix of rank 2."""
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn(5, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    losses = []
    for _ in range(steps):
        loss = (up @ down - wanted).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_or_a_reason(name: str) -> None:
    down, up = factors()
    settings = LearningSettings(optimizer_type=name, learning_rate=0.01)
    if name in MISSING:
        reason = optimizer_problem(name)
        package = {"prodigyplus": "prodigy-plus-schedule-free"}.get(MISSING[name], MISSING[name])
        assert reason is not None and f"{MISSING[name]} cannot be imported here" in reason
        assert f"install {package} into" in reason
        return
    assert optimizer_problem(name) is None
    before = down.detach().clone(), up.detach().clone()
    losses = descend(make_optimizer(groups_of(down, up), settings), down, up, 5)
    assert len(losses) == 5 and all(torch.isfinite(each).all() for each in (down, up))
    assert not torch.equal(up, before[1])


@pytest.mark.parametrize("name", ["AdamW", "SGDNesterov", "Lion", "Prodigy", "AdaFactor", "AdamWScheduleFree", "CAME"])
def test_they_descend(name: str) -> None:
    down, up = factors()
    rate = 1.0 if name == "Prodigy" else 0.05
    arguments = {"Prodigy": "d0=1e-3", "AdaFactor": "relative_step=False scale_parameter=False"}.get(name, "")
    settings = LearningSettings(optimizer_type=name, learning_rate=rate, optimizer_args=arguments)
    losses = descend(make_optimizer(groups_of(down, up, rate=rate), settings), down, up, 60)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer_type": "AdamW"}, {"betas": (0.9, 0.999), "weight_decay": 0.01}),
        ({"optimizer_type": "adamw", "optimizer_args": "betas=0.9,0.99 eps=1e-7"}, {"betas": (0.9, 0.99), "eps": 1e-7}),
        ({"optimizer_type": "AdamW", "weight_decay": 0.2}, {"weight_decay": 0.2}),
        ({"optimizer_type": "SGD"}, {"momentum": 0, "nesterov": False}),
        ({"optimizer_type": "SGDNesterov"}, {"momentum": 0.9, "nesterov": True}),
        ({"optimizer_type": "SGDNesterov", "optimizer_args": "momentum=0.5"}, {"momentum": 0.5, "nesterov": True}),
        ({"optimizer_type": "DAdaptLion"}, {"betas": (0.9, 0.99)}),
        ({"optimizer_type": "DAdaptSGD"}, {"momentum": 0.0}),
        (
            {
                "optimizer_type": "Prodigy",
                "optimizer_args": "decouple=True weight_decay=0.01 d_coef=2 use_bias_correction=True "
                "safeguard_warmup=True betas=0.9,0.99",
            },
            {"weight_decouple": True, "weight_decay": 0.01, "d_coef": 2, "bias_correction": True, "betas": (0.9, 0.99)},
        ),
        ({"optimizer_type": "DAdaptAdam", "optimizer_args": "decouple=True log_every=1"}, {"weight_decouple": True}),
        ({"optimizer_type": "Adafactor"}, {"relative_step": True, "lr": None, "scale_parameter": True}),
        (
            {"optimizer_type": "AdaFactor", "optimizer_args": "relative_step=False scale_parameter=False"},
            {"relative_step": False, "lr": 0.01, "scale_parameter": False},
        ),
        (
            {"optimizer_type": "AdaFactor", "optimizer_args": "relative_step=False warmup_init=True"},
            {"relative_step": True, "warmup_init": True, "lr": None},
        ),
        ({"optimizer_type": "torch.optim.NAdam", "optimizer_args": "betas=(0.8, 0.9)"}, {"betas": (0.8, 0.9)}),
        ({"optimizer_type": "RMSprop"}, {"alpha": 0.99}),
    ],
)
def test_what_the_class_is_given(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    group = make_optimizer(groups_of(*factors()), LearningSettings(**settings)).param_groups[0]
    assert {name: group[name] for name in expected} == expected


def test_lion_and_prodigy_are_those_of_their_papers_packages() -> None:
    """Literal weights after 60 and 20 steps, from lion_pytorch 0.2.5 and prodigyopt 1.1.2 run on this very problem."""
    settings = LearningSettings(optimizer_type="Lion", learning_rate=0.01, optimizer_args="weight_decay=0.1")
    down, up = factors()
    descend(make_optimizer(groups_of(down, up), settings), down, up, 60)
    assert up[0].tolist() == pytest.approx(LION_UP, abs=1e-6)
    down, up = factors()
    settings = LearningSettings(
        optimizer_type="Prodigy", learning_rate=1.0,
        optimizer_args="decouple=True weight_decay=0.01 d_coef=2 use_bias_correction=True safeguard_warmup=True "
        "d0=1e-3",
    )  # fmt: skip
    descend(make_optimizer(groups_of(down, up, rate=1.0), settings), down, up, 20)
    assert up[0].tolist() == pytest.approx(PRODIGY_UP, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer_type": "AdamX"}, r"'AdamX': did you mean AdamW.*package\.Class"),
        ({"optimizer_type": "nowhere.Optimizer"}, "nowhere cannot be imported here.*install nowhere"),
        ({"optimizer_type": "torch.optim.Nothing"}, r"torch\.optim has no Nothing"),
        ({"optimizer_type": "torch.nn.Linear"}, "that is no Optimizer"),
        ({"optimizer_args": "wieght_decay=0.1"}, "AdamW has no wieght_decay; it takes betas, eps, weight_decay"),
        ({"optimizer_type": "Lion", "optimizer_args": "dcay=1"}, "Lion has no dcay; it takes betas, weight_decay"),
        ({"optimizer_args": "betas=2,3"}, r"AdamW does not accept .*betas=\(2, 3\).*beta"),
        ({"optimizer_args": "betas"}, "'betas' is no name=value pair"),
        ({"optimizer_type": "torch.optim.LBFGS"}, "test step on cpu fails"),
    ],
)
def test_what_cannot_be_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_optimizer(LearningSettings(**settings), CPU)


def test_the_title_in_files_is_sd_scripts() -> None:
    assert optimizer_title(LearningSettings()) == "torch.optim.adamw.AdamW"
    settings = LearningSettings(optimizer_args="betas=0.9,0.99 eps=1e-8", weight_decay=0.1)
    assert optimizer_title(settings) == "torch.optim.adamw.AdamW(betas=(0.9, 0.99),eps=1e-08,weight_decay=0.1)"
