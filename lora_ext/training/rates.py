"""Learning rates: of the parts, blocks and factors of a network, and how they run over the steps."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_ext.config.algorithms import HAS_UP_FACTORS, has_kernels, is_own_preset, trains_text_encoder
from lora_ext.config.arguments import parse_arguments, parse_numbers
from lora_ext.config.learning_rules import sets_its_own_rate
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.blocks import adapted_blocks, number_of_block
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError
from lora_ext.training.class_paths import check_arguments, class_at, make
from lora_ext.training.optimizers import make_optimizer
from lora_ext.training.schedules import Factor, lr_factor, schedule_name

_STEPS_LOOKED_AT = 100
_PARTS = ("unet", "text_encoder")


@dataclass(frozen=True)
class RateGroup:
    """Parameters that share a learning rate: those of a part, of the blocks with a factor, of the up weights.

    `is_second`: those of SDXL's second text encoder, where it has a rate of its own.
    """

    part: str
    factor: float
    is_up: bool
    rate: float
    is_second: bool = False

    @property
    def label(self) -> str:
        """The group's name in logs: "unet", "unet x0.5", "text_encoder up"."""
        part = f"{self.part} 2" if self.is_second else self.part
        return part + (f" x{self.factor:g}" if self.factor != 1.0 else "") + (" up" if self.is_up else "")


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rate of each part that is trained: "unet", "text_encoder"; a part with rate 0 is left out.

    Raises UserError where nothing is left to train.
    """
    learning, network = config.learning, config.network
    rates: dict[str, float] = {}
    if not network.network_train_text_encoder_only:
        rates["unet"] = learning.learning_rate if learning.unet_lr is None else learning.unet_lr
    if trains_text_encoder(network):
        first, second = text_encoder_rates(config)
        rates["text_encoder"] = first or second
    trained = {part: rate for part, rate in rates.items() if rate > 0}
    if not trained:
        names = ", ".join("unet_lr" if part == "unet" else "text_encoder_lr" for part in rates)
        raise UserError(f"nothing is left to train: {names} = 0; set learning_rate, or a rate of its own, above 0")
    return trained


def text_encoder_rates(config: TrainConfig) -> tuple[float, float]:
    """The rates of the first text encoder and of SDXL's second one."""
    learning = config.learning
    first = learning.learning_rate if learning.text_encoder_lr is None else learning.text_encoder_lr
    return first, first if learning.text_encoder_2_lr is None else learning.text_encoder_2_lr


def has_rate(config: TrainConfig, target: Target) -> bool:
    """Whether a target's text encoder has a rate above 0; the U-Net's always have here."""
    return target.group == "unet" or text_encoder_rates(config)[target.is_in_second_encoder] > 0


def block_factors(config: TrainConfig) -> list[float] | None:
    """Factor on the U-Net's rate for each of its blocks; None where all have the same."""
    return parse_numbers(config.learning.block_lr) or None


def rate_groups(config: TrainConfig) -> list[RateGroup]:
    """The groups that a run's optimizer has, the U-Net's first; blocks with the same factor share one."""
    factors = block_factors(config)
    everywhere = has_kernels(config.network) or config.network.network_preset.strip() == "full-lin"
    blocks = adapted_blocks(len(factors), everywhere) if factors is not None else ()
    of_unet = {factors[block] for block in blocks} if factors is not None else {1.0}
    groups = {
        group
        for part in learning_rates(config)
        for factor in (of_unet if part == "unet" else {1.0})
        for is_second in (False, True)
        for group in _groups_of(config, part, factor, is_second)
    }
    return sorted(groups, key=_order)


def parameter_groups(config: TrainConfig, adapters: Mapping[str, Adapter]) -> list[dict[str, Any]]:
    """The optimizer's groups over the adapters' parameters: `params`, `lr`, `initial_lr`, `part`, `label`.

    Adapters of blocks with a factor of 0, which a file may have brought, are in none and take no gradient: they stay as
    they are.
    """
    members: dict[RateGroup, list[Tensor]] = {}
    factors = block_factors(config)
    for adapter in adapters.values():
        part = adapter.target.group
        factor = number_of_block(factors if part == "unet" else None, adapter.target.block, 1.0)
        groups = _groups_of(config, part, factor, adapter.target.is_in_second_encoder)
        if groups:
            others, ups = adapter.split_parameters()
            if others:
                members.setdefault(groups[0], []).extend(others)
            if ups:
                members.setdefault(groups[-1], []).extend(ups)
        else:
            adapter.requires_grad_(False)
    if not members:
        raise UserError("nothing is left to train: block_lr is 0 for every block of this network; leave one of them in")
    return [_group(group, members[group]) for group in sorted(members, key=_order)]


def _groups_of(config: TrainConfig, part: str, factor: float, is_second: bool) -> list[RateGroup]:
    """The groups of a part's blocks with a factor: one, or with LoRA+ one for each of down and up; none for 0.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) is a factor on the rate of the up weights.
    """
    learning = config.learning
    own = learning.loraplus_unet_lr_ratio if part == "unet" else learning.loraplus_text_encoder_lr_ratio
    ratio, rate = own or learning.loraplus_lr_ratio, learning_rates(config)[part] * factor
    first, second = text_encoder_rates(config)
    is_second = is_second and part == "text_encoder" and first != second
    if part == "text_encoder":
        rate = second if is_second else first
    if not rate:
        return []
    groups = [RateGroup(part, factor, False, rate, is_second)]
    has_ups = config.network.network_algorithm in HAS_UP_FACTORS or is_own_preset(config.network)
    return groups if ratio is None or not has_ups else [*groups, RateGroup(part, factor, True, rate * ratio, is_second)]


def _order(group: RateGroup) -> tuple[int, bool, float, bool]:
    """The U-Net before the text encoders, large factors before small ones, down before up."""
    return _PARTS.index(group.part), group.is_second, -group.factor, group.is_up


def _group(group: RateGroup, parameters: Sequence[Tensor]) -> dict[str, Any]:
    known = {"lr": group.rate, "initial_lr": group.rate, "part": group.part, "label": group.label}
    return {"params": list(parameters), **known}


class RateRun:
    """Sets the rates of an optimizer's groups step by step, by a named schedule or a scheduler's class.

    From the step on at which the text encoder is to stand still its groups have rate 0, and their parameters take no
    gradient any more, which leaves them out of the backward pass and of every optimizer's work.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, total_steps: int) -> None:
        self.optimizer = optimizer
        self.scheduler: Any = None
        self._is_own = sets_its_own_rate(config.learning)
        self._stop = text_encoder_stop(config, total_steps)
        self._factor: Factor = _unchanged
        self._step = 0
        self._scheduler_steps = 0
        if "." in schedule_name(config.learning):
            self.scheduler = make_scheduler(optimizer, config)
        else:
            self._factor = lr_factor(config.learning, total_steps)

    def begin_step(self, step: int) -> None:
        """Set the rates of update 0, 1, …; steps come in their order."""
        self._step = step
        if self.scheduler is not None:
            self._advance(step)
        for group in self.optimizer.param_groups:
            if self._stands_still(group):
                _take_out(group)
            elif self.scheduler is None and not self._is_own:
                group["lr"] = group["initial_lr"] * self._factor(step)

    def rates(self) -> dict[str, float]:
        """The rates of the present step by label; for optimizers that find d, also d·lr."""
        found: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            rate = self._factor(self._step) if self._is_own else float(group["lr"])
            found[group["label"]] = rate = 0.0 if self._stands_still(group) else rate
            if "d" in group:
                found[f"{group['label']} d*lr"] = float(group["d"]) * rate
        return found

    def state_dict(self) -> dict[str, Any]:
        """How far a scheduler's class has come, or would have; named schedules know nothing but the step."""
        return {"steps": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the rates that this sets are the run's, not those in an optimizer's state.

        A scheduler goes through its steps again: what it knows may be functions, which no state can keep, and comes
        from the steps alone.
        """
        if self.scheduler is not None:
            self._advance(int(state["steps"]))

    def _stands_still(self, group: Mapping[str, Any]) -> bool:
        return group["part"] == "text_encoder" and self._step >= self._stop

    def _advance(self, step: int) -> None:
        """Step the scheduler up to here; torch warns where the optimizer's own steps are fewer, as after bad ones."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            while self._scheduler_steps < step:
                _step(self.scheduler, self._scheduler_steps + 1)
                self._scheduler_steps += 1


def text_encoder_stop(config: TrainConfig, total_steps: int) -> float:
    """The step, from 0, from which on the text encoder stands still; infinite where it never does."""
    share = config.learning.stop_text_encoder_training
    return math.ceil(total_steps * share / 100) if share and share < 100 else math.inf


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> Any:
    """The scheduler of a class path on this optimizer; UserError where it cannot be had or wants more than steps."""
    learning = config.learning
    path = learning.lr_scheduler.strip()
    kind: Any = class_at(path, "lr_scheduler", torch.optim.lr_scheduler.LRScheduler)
    if "metrics" in inspect.signature(kind.step).parameters:
        raise UserError(f"lr_scheduler = {path!r} goes by the loss, which a run does not tell it: choose another")
    arguments, problems = parse_arguments(learning.lr_scheduler_args)
    if problems:
        raise UserError(f"lr_scheduler_args: {'; '.join(problems)}")
    check_arguments(kind, arguments, "lr_scheduler_args", frozenset({"self", "optimizer"}))
    started = [group.pop("initial_lr") for group in optimizer.param_groups]  # some begin with a rate of their own
    scheduler = make(kind, "lr_scheduler_args", optimizer, **arguments)
    for group, rate in zip(optimizer.param_groups, started, strict=True):
        group.setdefault("initial_lr", rate)
    return scheduler


def _step(scheduler: Any, number: int) -> None:
    """A scheduler's step; UserError where it fails: OneCycleLR does beyond the steps that it was told of."""
    try:
        scheduler.step()
    except Exception as error:  # whatever a scheduler's class raises
        raise UserError(
            f"lr_scheduler: {type(scheduler).__name__} fails at step {number} of the run ({error}): correct "
            "lr_scheduler_args, or choose another"
        ) from error


def check_schedule(config: TrainConfig, total_steps: int) -> None:
    """Raise UserError where the schedule is not to be had, fails within the steps of a run, or gives no rates."""
    curve = learning_rate_curve(config, total_steps, every=max(1, total_steps // _STEPS_LOOKED_AT))
    odd = [rate for points in curve.values() for rate in points if not 0 <= rate < math.inf]
    if odd:
        raise UserError(
            f"lr_scheduler = {config.learning.lr_scheduler}: it gives a learning rate of {odd[0]:g}: correct "
            "lr_scheduler_args, or choose another"
        )


def learning_rate_curve(config: TrainConfig, total_steps: int, every: int = 1) -> dict[str, list[float]]:
    """Rates by label over the steps of a run, each `every`th of them, exactly as they will be set.

    For optimizers that find d it is the schedule's part alone. Raises UserError where optimizer or schedule cannot be
    had.
    """
    groups = [_group(each, [nn.Parameter(torch.zeros(1, 1))]) for each in rate_groups(config)]
    if "." in schedule_name(config.learning):
        optimizer = make_optimizer(groups, config.learning)
    else:
        optimizer = torch.optim.SGD(groups, lr=1.0)  # it is not stepped: any one holds the rates
    run = RateRun(optimizer, config, total_steps)
    curve: dict[str, list[float]] = {group["label"]: [] for group in groups}
    for step in range(0, total_steps, every):
        run.begin_step(step)
        rates = run.rates()
        for label, points in curve.items():
            points.append(rates[label])
    run.begin_step(total_steps - 1)
    return curve


def _unchanged(step: int) -> float:
    return 1.0


def _take_out(group: dict[str, Any]) -> None:
    """Leave a group's parameters as they are from now on."""
    if group["lr"] is not None:  # AdaFactor's groups have none
        group["lr"] = 0.0
    for parameter in group["params"]:
        parameter.requires_grad_(False)
        parameter.grad = None
