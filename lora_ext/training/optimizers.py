"""Optimizers by name, from torch, `pytorch_optimizer`, bitsandbytes and others, and by class path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lora_ext.config.arguments import parse_arguments
from lora_ext.config.groups import LearningSettings
from lora_ext.config.groups.learning import OPTIMIZERS
from lora_ext.config.learning_rules import optimizer_name, sets_its_own_rate
from lora_ext.protocols import UserError
from lora_ext.training.class_paths import check_arguments, class_at, make

_GIVEN = frozenset({"params", "lr"})
_RENAMED = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
_WITHOUT_EFFECT = frozenset({"log_every", "fsdp_in_use"})


@dataclass(frozen=True)
class _Known:
    """Where a named optimizer is, and what sd-scripts gives it where the user gives nothing.

    `renamed` are arguments that its users know by the names of another package; `group` stands in each of its groups.
    `fused_on_gpu`: one kernel makes the whole step there.
    """

    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    group: Mapping[str, Any] = field(default_factory=dict)
    fused_on_gpu: bool = False


_NESTEROV = {"momentum": 0.9, "nesterov": True}
_KNOWN = {
    "AdamW": _Known("torch.optim.AdamW", {"foreach": True}, fused_on_gpu=True),
    "SGD": _Known("torch.optim.SGD", {"foreach": True}),
    "SGDNesterov": _Known("torch.optim.SGD", {"foreach": True, **_NESTEROV}),
    "SGDNesterov8bit": _Known("bitsandbytes.optim.SGD8bit", _NESTEROV),
    **{
        name: _Known(f"bitsandbytes.optim.{name}")
        for name in ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion8bit", "PagedLion8bit")
    },
    **{name: _Known(f"pytorch_optimizer.{name}") for name in ("Lion", "CAME", "AdEMAMix", "ADOPT", "Tiger")},
    "Muon": _Known("pytorch_optimizer.Muon", group={"use_muon": True}),
    "DAdaptAdam": _Known("pytorch_optimizer.DAdaptAdam", {}, _RENAMED),
    "DAdaptLion": _Known("pytorch_optimizer.DAdaptLion", {"betas": (0.9, 0.99)}, _RENAMED),
    "DAdaptSGD": _Known("pytorch_optimizer.DAdaptSGD", {"momentum": 0.0}, _RENAMED),
    "Prodigy": _Known("pytorch_optimizer.Prodigy", {}, _RENAMED),
    # pytorch_optimizer's versions of these give other networks than the package that sd-scripts takes them from.
    "DAdaptation": _Known("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdamPreprint": _Known("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdanIP": _Known("dadaptation.experimental.DAdaptAdanIP"),
    "DAdaptAdaGrad": _Known("dadaptation.DAdaptAdaGrad"),
    "DAdaptAdan": _Known("dadaptation.DAdaptAdan"),
    "AdaFactor": _Known("transformers.optimization.Adafactor"),
    "AdamWScheduleFree": _Known("pytorch_optimizer.ScheduleFreeAdamW"),
    "RAdamScheduleFree": _Known("pytorch_optimizer.ScheduleFreeRAdam"),
    "SGDScheduleFree": _Known("pytorch_optimizer.ScheduleFreeSGD"),
    "ProdigyPlusScheduleFree": _Known("prodigyplus.ProdigyPlusScheduleFree"),
}


def make_optimizer(groups: Sequence[Mapping[str, Any]], settings: LearningSettings) -> torch.optim.Optimizer:
    """The optimizer of the settings over parameter groups that hold `params`, `lr`, `initial_lr`, `part`, `label`.

    Raises UserError where it cannot be had here, or does not take its arguments.
    """
    known, kind = _found(settings.optimizer_type)
    arguments = optimizer_arguments(settings)
    check_arguments(kind, arguments, "optimizer_args", _GIVEN)
    parameters = [parameter for group in groups for parameter in group["params"]]
    arguments = {**_defaults(known, arguments, parameters), **arguments}
    own = sets_its_own_rate(settings)
    finished = [{**group, **known.group, "lr": None if own else group["lr"]} for group in groups]
    rate = max(group["initial_lr"] for group in groups)
    optimizer: torch.optim.Optimizer = make(kind, "optimizer_args", finished, lr=None if own else rate, **arguments)
    train = getattr(optimizer, "train", None)
    if callable(train):
        train()
    return optimizer


def optimizer_arguments(settings: LearningSettings) -> dict[str, Any]:
    """The arguments that the settings give the class, by the names that it knows them by."""
    arguments, problems = parse_arguments(settings.optimizer_args)
    if problems:
        raise UserError(f"optimizer_args: {'; '.join(problems)}")
    known, _ = _found(settings.optimizer_type)
    if known.renamed:
        arguments = {known.renamed.get(k, k): value for k, value in arguments.items() if k not in _WITHOUT_EFFECT}
    if settings.weight_decay is not None:
        arguments.setdefault("weight_decay", settings.weight_decay)
    if arguments.get("warmup_init") and known.path.endswith(".Adafactor"):
        arguments["relative_step"] = True
    return arguments


def optimizer_title(settings: LearningSettings) -> str:
    """The optimizer with its arguments as sd-scripts writes it into files: module.Class(name=value,…)."""
    _, kind = _found(settings.optimizer_type)
    arguments = ",".join(f"{name}={value}" for name, value in optimizer_arguments(settings).items())
    return f"{kind.__module__}.{kind.__name__}" + (f"({arguments})" if arguments else "")


def optimizer_problem(name: str, device: torch.device | None = None) -> str | None:
    """Why an optimizer cannot be had on this machine, None where a test step works; `device` is the CPU if None."""
    try:
        check_optimizer(LearningSettings(optimizer_type=name), device or torch.device("cpu"))
    except UserError as error:
        return str(error)
    return None


def check_optimizer(settings: LearningSettings, device: torch.device) -> None:
    """Take a step on a tensor of no importance; UserError with the reason and a remedy where that fails."""
    weight = nn.Parameter(torch.ones(64, 64, device=device))  # 8-bit optimizers take 4,096 numbers and more as such
    rate = settings.learning_rate or 1e-4
    group = {"params": [weight], "lr": rate, "initial_lr": rate, "part": "unet", "label": "unet"}
    optimizer = make_optimizer([group], settings)
    weight.grad = torch.full_like(weight, 0.5)
    try:
        optimizer.step()
        finite = bool(torch.isfinite(weight).all())
    except Exception as error:  # also what a package's own compiled code raises on a card that it does not know
        raise UserError(
            f"optimizer_type = {settings.optimizer_type}: a test step on {device} fails "
            f"({type(error).__name__}: {error}); choose another, AdamW works everywhere"
        ) from error
    if not finite:
        raise UserError(
            f"optimizer_type = {settings.optimizer_type}: a test step on {device} gives numbers that are not finite; "
            "check optimizer_args, or choose another"
        )


def _found(name: str) -> tuple[_Known, type]:
    """The optimizer of a name or class path, and its class."""
    known = _KNOWN.get(optimizer_name(name))
    if known is None:
        path = name if "." in name else f"torch.optim.{name}"
        if "." not in name and not hasattr(torch.optim, name):
            near = difflib.get_close_matches(name, OPTIMIZERS, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(
                f"optimizer_type = {name!r}: {hint}Allowed are {', '.join(OPTIMIZERS)}, and package.Class for any other"
            )
        known = _Known(path)
    return known, class_at(known.path, "optimizer_type", torch.optim.Optimizer)


def _defaults(known: _Known, arguments: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """What the user has left open; torch's fused step excludes the one over many tensors."""
    defaults = dict(known.defaults)
    chosen = not arguments.keys().isdisjoint(("foreach", "fused", "differentiable"))
    if known.fused_on_gpu and not chosen and _is_on_gpu(parameters):
        defaults["fused"] = True
    if (defaults | dict(arguments)).get("fused"):
        defaults.pop("foreach", None)
    return defaults


def _is_on_gpu(parameters: Sequence[nn.Parameter]) -> bool:
    return all(parameter.is_cuda for parameter in parameters)
