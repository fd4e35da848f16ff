"""How the learning rate runs over the steps of a run: factors as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_ext.config.arguments import parse_arguments
from lora_ext.config.groups import LearningSettings
from lora_ext.config.groups.learning import SCHEDULES
from lora_ext.config.learning_rules import GUIDES_RESTARTS, is_schedule_free, sets_its_own_rate
from lora_ext.protocols import UserError

Factor = Callable[[int], float]
"""Factor on the learning rate for update 0, 1, …"""

_POLYNOMIAL_END = 1e-7


@dataclass(frozen=True)
class Span:
    """A run's length, and the settings of its schedule, all in steps."""

    total: int
    warmup: int
    settings: LearningSettings
    arguments: Mapping[str, Any]

    @property
    def lowest(self) -> float:
        """The share of the rate that the schedule ends at."""
        return self.settings.lr_scheduler_min_lr_ratio or 0.0

    def progress(self, step: int) -> float:
        """How much of what comes after the warmup is over, 0…1 and beyond."""
        return (step - self.warmup) / max(1, self.total - self.warmup)

    def falling(self, shape: float) -> float:
        """A shape from 1 to 0, lifted so that it ends at the lowest rate."""
        return shape * (1.0 - self.lowest) + self.lowest


def warmup_steps(setting: float, total_steps: int) -> int:
    """Steps that `lr_warmup_steps` means: below 1 it is a share of all steps."""
    return int(setting * total_steps) if setting < 1 else int(setting)


def warms_up(settings: LearningSettings) -> bool:
    """Whether `lr_warmup_steps` acts: on the named schedules alone, where the optimizer leaves a choice."""
    name = schedule_name(settings)
    chosen = not is_schedule_free(settings) and not sets_its_own_rate(settings)
    return chosen and "." not in name and name != "piecewise_constant"


def schedule_name(settings: LearningSettings) -> str:
    """The schedule that acts: some optimizers leave no choice, and the guides' class is one of ours."""
    if is_schedule_free(settings):
        return "constant"
    if sets_its_own_rate(settings):
        return "adafactor"
    name = settings.lr_scheduler.strip()
    arguments, _ = parse_arguments(settings.lr_scheduler_args)
    if name.rpartition(".")[2] == GUIDES_RESTARTS and "T_0" in arguments:
        return "cosine_annealing_warmup_restarts"
    return name


def lr_factor(settings: LearningSettings, total_steps: int) -> Factor:
    """The factor of a named schedule; UserError for a name that there is none of, or arguments that it does not take.

    The formulas are those of diffusers and transformers as sd-scripts calls them: with a warmup the first factor is 0.
    """
    name = schedule_name(settings)
    if name not in _SHAPES:
        raise UserError(
            f"lr_scheduler = {name!r}: allowed is one of {', '.join(SCHEDULES)}, and package.Class for any other"
        )
    if name != settings.lr_scheduler.strip() and name in ("constant", "adafactor"):  # the optimizer's, not the user's
        return _SHAPES[name](Span(total_steps, 0, settings, {}))
    arguments, problems = parse_arguments(settings.lr_scheduler_args)
    allowed = _ARGUMENTS.get(name, ())
    takes = ", ".join(allowed) or "none"
    problems += [f"{name} has no {each}; it takes {takes}" for each in arguments if each not in allowed]
    if problems:
        raise UserError(f"lr_scheduler_args: {'; '.join(problems)}")
    warmup = warmup_steps(settings.lr_warmup_steps, total_steps)
    return _SHAPES[name](Span(total_steps, warmup, settings, arguments))


def _after_warmup(span: Span, shape: Factor) -> Factor:
    def factor(step: int) -> float:
        return step / max(1, span.warmup) if step < span.warmup else shape(step)

    return factor


def _constant(span: Span) -> Factor:
    return _after_warmup(span, lambda step: 1.0)


def _linear(span: Span) -> Factor:
    return _after_warmup(span, lambda step: max(0.0, 1.0 - span.progress(step)))


def _cosine(span: Span) -> Factor:
    return _after_warmup(span, lambda step: max(0.0, _half_wave(span.progress(step))))


def _half_wave(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _cosine_with_restarts(span: Span) -> Factor:
    cycles = span.settings.lr_scheduler_num_cycles

    def shape(step: int) -> float:
        progress = span.progress(step)
        return 0.0 if progress >= 1.0 else max(0.0, _half_wave((cycles * progress) % 1.0))

    return _after_warmup(span, shape)


def _cosine_with_min_lr(span: Span) -> Factor:
    cycles = span.settings.lr_scheduler_num_cycles
    return _after_warmup(span, lambda step: max(0.0, span.falling(_half_wave(cycles * span.progress(step)))))


def _polynomial(span: Span) -> Factor:
    """Ends at a rate of 1e-7, as in diffusers, of the general learning rate."""
    end = _POLYNOMIAL_END / (span.settings.learning_rate or span.settings.unet_lr or 1.0)
    power = span.settings.lr_scheduler_power
    if end >= 1.0:
        raise UserError(
            f"learning_rate = {span.settings.learning_rate:g}: the polynomial schedule ends at {_POLYNOMIAL_END:g}, "
            "which is not below that; raise the rate, or choose another schedule"
        )

    def shape(step: int) -> float:
        return end if step > span.total else (1.0 - end) * (1.0 - span.progress(step)) ** power + end

    return _after_warmup(span, shape)


def _inverse_sqrt(span: Span) -> Factor:
    timescale = span.settings.lr_scheduler_timescale or span.warmup or 10_000
    return _after_warmup(span, lambda step: 1.0 / math.sqrt((step + timescale - span.warmup) / timescale))


def _warmup_stable_decay(span: Span) -> Factor:
    decay, cycles = warmup_steps(span.settings.lr_decay_steps, span.total), span.settings.lr_scheduler_num_cycles
    stable_until = span.total - decay

    def factor(step: int) -> float:
        if step < span.warmup:
            return span.falling(step / max(1, span.warmup))
        if step < stable_until:
            return 1.0
        if step < span.total:
            return max(0.0, span.falling(_half_wave(cycles * (step - stable_until) / max(1, decay))))
        return span.lowest

    return factor


def _piecewise_constant(span: Span) -> Factor:
    """Factors up to steps: `1:100,0.1:500,0.01` is 1 before step 100, 0.1 before step 500, then 0.01."""
    text = str(span.arguments.get("step_rules", ""))
    *pieces, last = text.split(",")
    try:
        rules = sorted((int(step), float(value)) for value, step in (piece.split(":") for piece in pieces))
        final = float(last)
    except ValueError as error:
        raise UserError(
            f"lr_scheduler_args: step_rules = {text!r}: write factor:step pairs and a last factor, such as "
            "1:100,0.1:500,0.01"
        ) from error
    return lambda step: next((value for until, value in rules if step < until), final)


def _adafactor(span: Span) -> Factor:
    """AdaFactor's relative step (Shazeer and Stern 2018, arXiv:1804.04235), before its scaling by the weights."""
    arguments, _ = parse_arguments(span.settings.optimizer_args)
    slow = bool(arguments.get("warmup_init", False))
    return lambda step: min(1e-6 * (step + 1) if slow else 1e-2, 1.0 / math.sqrt(step + 1))


def _rex(span: Span) -> Factor:
    """REX (Chen, Wolfe and Kyrillidis 2021, arXiv:2107.04197): slow at first, steep at the end."""

    def shape(step: int) -> float:
        left = max(0.0, 1.0 - span.progress(step))
        return span.falling(left / (0.5 + 0.5 * left))

    return _after_warmup(span, shape)


def _warm_restarts(span: Span) -> Factor:
    """Cosine cycles (Loshchilov and Hutter 2016, arXiv:1608.03983), each but the first with a warmup of its own.

    A cycle's highest rate is that of the one before times the decay, its lowest a share of its highest. The guides'
    names, as `lr_scheduler_args`: T_0 steps a cycle, T_mult from cycle to cycle, down_factor the lowest share, decay,
    gamma_min_lr a factor on the rate at each step, warmup_steps, cycle_warmup; init_lr_ground: from 0, as always here.
    """
    settings, given = span.settings, span.arguments
    warmup = int(_number(given, "warmup_steps", span.warmup, 1e9))
    length = _number(given, "T_0", (span.total - warmup) / settings.lr_scheduler_num_cycles)
    growth, each_step = _number(given, "T_mult", 1.0), _number(given, "gamma_min_lr", 1.0, 1.0)
    lowest = _number(given, "down_factor", span.lowest, 1.0)
    decay = _number(given, "decay", settings.lr_cycle_decay, 1.0)
    rise_setting = _number(given, "cycle_warmup", settings.lr_cycle_warmup_steps)
    if length < 1 or growth < 1:
        raise UserError(f"lr_scheduler: cycles of {length:g} steps, times {growth:g} each: they take 1 or more")

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        place, cycle, now = float(step - warmup), 0, length
        while place >= now:
            place, cycle, now = place - now, cycle + 1, now * growth
        rise = 0.0 if cycle == 0 else rise_setting * now if rise_setting < 1 else min(rise_setting, now)
        shape = place / rise if place < rise else _half_wave((place - rise) / max(1.0, now - rise))
        highest: float = decay**cycle * each_step ** (step - warmup)
        return highest * (shape * (1.0 - lowest) + lowest)

    return factor


def _number(given: Mapping[str, Any], name: str, otherwise: float, highest: float = math.inf) -> float:
    """One of the schedule's arguments, or `otherwise` where it is not there; UserError for what is no such number."""
    if name not in given:
        return otherwise
    try:
        number = float(given[name])
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= highest:
        allowed = "from 0 on" if highest == math.inf else f"from 0 to {highest:g}"
        raise UserError(f"lr_scheduler_args: {name} = {given[name]}: allowed are numbers {allowed}")
    return number


_SHAPES: dict[str, Callable[[Span], Factor]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
    "piecewise_constant": _piecewise_constant,
    "adafactor": _adafactor,
    "rex": _rex,
    "cosine_annealing_warmup_restarts": _warm_restarts,
}
_ARGUMENTS = {
    "piecewise_constant": ("step_rules",),
    "cosine_annealing_warmup_restarts": (
        "T_0", "T_mult", "down_factor", "decay", "gamma_min_lr", "warmup_steps", "cycle_warmup", "init_lr_ground",
    ),
}  # fmt: skip
