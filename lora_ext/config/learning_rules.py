"""What of the learning settings fights each other, and what a person should know of them before the start."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_ext.config.algorithms import has_kernels, trains_text_encoder
from lora_ext.config.arguments import parse_arguments, parse_numbers
from lora_ext.config.groups import LearningSettings, NetworkSettings
from lora_ext.config.groups.learning import OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    from lora_ext.config.train_config import TrainConfig

_BLOCK_COUNTS = (25, 23)
GUIDES_RESTARTS = "CosineAnnealingWarmupRestarts"
"""The guides' class for a schedule that is one of ours."""

_RESTARTS = "cosine_annealing_warmup_restarts"
_ACTS_ON = {
    "lr_warmup_steps": tuple(name for name in SCHEDULES if name not in ("piecewise_constant", "adafactor")),
    "lr_decay_steps": ("warmup_stable_decay",),
    "lr_scheduler_num_cycles": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay", _RESTARTS),
    "lr_scheduler_power": ("polynomial",),
    "lr_scheduler_timescale": ("inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay", "rex", _RESTARTS),
    "lr_cycle_warmup_steps": (_RESTARTS,),
    "lr_cycle_decay": (_RESTARTS,),
}
"""Which schedules a setting acts on."""
_Problem = tuple[tuple[str, ...], str]


def optimizer_name(text: str) -> str:
    """The name as it is declared, in whichever case it is written; another name or a class path as it is."""
    return next((name for name in OPTIMIZERS if name.lower() == text.strip().lower()), text.strip())


def sets_its_own_rate(learning: LearningSettings) -> bool:
    """Whether the optimizer takes no rate at all: AdaFactor with relative_step, which is its default."""
    if optimizer_name(learning.optimizer_type).rpartition(".")[2].lower() != "adafactor":
        return False
    if learning.optimizer_type.startswith("pytorch_optimizer."):
        return False
    arguments, _ = parse_arguments(learning.optimizer_args)
    return bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))


def is_schedule_free(learning: LearningSettings) -> bool:
    """Whether the optimizer needs no schedule: the rate stays as it is, and weights are averaged instead."""
    name = optimizer_name(learning.optimizer_type).rpartition(".")[2].lower()
    return name.startswith("schedulefree") or name.endswith("schedulefree")


def finds_one_rate(learning: LearningSettings) -> bool:
    """Whether the optimizer finds the rate by itself, one for all parameters: D-Adaptation and Prodigy."""
    name = optimizer_name(learning.optimizer_type).rpartition(".")[2].lower()
    return name.startswith("dadapt") or name == "prodigy"


def learning_contradictions(config: TrainConfig) -> Iterable[_Problem]:
    """Values of the learning and network groups that fight each other: (names involved, what to set)."""
    learning = config.learning
    for name in ("optimizer_args", "lr_scheduler_args"):
        for problem in parse_arguments(getattr(learning, name))[1]:
            yield (name,), f"{name} = {getattr(learning, name)!r}: {problem}"
    if learning.weight_decay is not None and "weight_decay" in parse_arguments(learning.optimizer_args)[0]:
        yield (
            ("weight_decay", "optimizer_args"),
            "weight_decay stands in optimizer_args too: leave one of them out",
        )
    yield from _block_contradictions(config.network, learning)
    yield from _rate_contradictions(config)


def _block_contradictions(network: NetworkSettings, learning: LearningSettings) -> Iterable[_Problem]:
    """Lists by block that are no numbers, or not as many as a kind of checkpoint has blocks."""
    lists = {
        "block_dims": network.block_dims,
        "block_alphas": network.block_alphas,
        "conv_block_dims": network.conv_block_dims,
        "conv_block_alphas": network.conv_block_alphas,
        "block_lr": learning.block_lr,
    }
    counts: dict[str, int] = {}
    for name, text in lists.items():
        if not text.strip():
            continue
        numbers = parse_numbers(text)
        if numbers is None or any(not 0 <= number < 1e5 for number in numbers):
            yield (name,), f"{name} = {text!r}: allowed are numbers from 0 on, with commas between them"
        elif len(numbers) not in _BLOCK_COUNTS:
            yield (name,), f"{name} has {len(numbers)} numbers: SD1 and SD2 take 25, SDXL takes 23"
        elif name.endswith("dims") and any(number != int(number) for number in numbers):
            yield (name,), f"{name} = {text!r}: ranks are whole numbers"
        else:
            counts[name] = len(numbers)
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield tuple(counts), f"numbers by block are those of different kinds of checkpoint ({given}): SDXL takes 23"


def _rate_contradictions(config: TrainConfig) -> Iterable[_Problem]:
    learning, network = config.learning, config.network
    schedule = learning.lr_scheduler.strip()
    if schedule not in SCHEDULES and "." not in schedule:
        near = difflib.get_close_matches(schedule, SCHEDULES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield (
            ("lr_scheduler",),
            f"lr_scheduler = {schedule!r}: allowed are {', '.join(SCHEDULES)}, and package.Class for any other{hint}",
        )
    if learning.lr_scheduler == "adafactor" and not sets_its_own_rate(learning):
        yield (
            ("lr_scheduler", "optimizer_type"),
            "lr_scheduler = adafactor belongs to optimizer_type = AdaFactor with relative_step=True: "
            "choose another schedule",
        )
    if learning.lr_scheduler == "piecewise_constant" and "step_rules" not in learning.lr_scheduler_args:
        yield (
            ("lr_scheduler", "lr_scheduler_args"),
            "lr_scheduler = piecewise_constant needs step_rules in lr_scheduler_args, such as "
            "step_rules=1:100,0.1:500,0.01 (factor 1 to step 100, 0.1 to step 500, then 0.01)",
        )
    if finds_one_rate(learning) and len(_different_rates(config)) > 1:
        yield (
            ("optimizer_type", "unet_lr", "text_encoder_lr", "block_lr", "loraplus_lr_ratio"),
            f"optimizer_type = {learning.optimizer_type} finds one rate for all parameters, and there are rates "
            f"{', '.join(f'{rate:g}' for rate in sorted(_different_rates(config)))}: set the same for both parts, "
            "without LoRA+ ratios and rates by block",
        )
    if learning.ema_decay is not None and is_schedule_free(learning):
        yield (
            ("ema_decay", "optimizer_type"),
            f"optimizer_type = {learning.optimizer_type} averages the weights already: leave ema_decay out",
        )
    unet_rate = learning.learning_rate if learning.unet_lr is None else learning.unet_lr
    stops = 0 < (learning.stop_text_encoder_training or 0) < 100
    if stops and (network.network_train_text_encoder_only or not unet_rate):
        yield (
            ("stop_text_encoder_training", "network_train_text_encoder_only", "unet_lr"),
            "stop_text_encoder_training leaves nothing to train after that: only the text encoder is trained; "
            "leave it out, or train the U-Net too",
        )


def _different_rates(config: TrainConfig) -> set[float]:
    """Rates above 0 of the parts, blocks and factors that are trained."""
    learning, network = config.learning, config.network
    general = learning.loraplus_lr_ratio
    rates: set[float] = set()
    if not network.network_train_text_encoder_only:
        rate = learning.learning_rate if learning.unet_lr is None else learning.unet_lr
        ratio = learning.loraplus_unet_lr_ratio or general or 1.0
        rates |= {rate * factor * each for factor in parse_numbers(learning.block_lr) or [1.0] for each in (1.0, ratio)}
    if trains_text_encoder(network):
        first = learning.learning_rate if learning.text_encoder_lr is None else learning.text_encoder_lr
        second = first if learning.text_encoder_2_lr is None else learning.text_encoder_2_lr
        ratio = learning.loraplus_text_encoder_lr_ratio or general or 1.0
        rates |= {rate * each for rate in (first, second) for each in (1.0, ratio)}
    return {rate for rate in rates if rate > 0}


def learning_advice(config: TrainConfig) -> Iterable[str]:
    """What is no mistake and surprises all the same."""
    learning, network = config.learning, config.network
    if sets_its_own_rate(learning) and learning.lr_scheduler != "adafactor":
        yield (
            f"optimizer_type = {learning.optimizer_type} sets the rate by itself (relative_step, its default): "
            f"learning rates and lr_scheduler = {learning.lr_scheduler} have no effect; set "
            "optimizer_args = relative_step=False scale_parameter=False warmup_init=False to use them"
        )
    if is_schedule_free(learning) and learning.lr_scheduler != "constant":
        yield (
            f"optimizer_type = {learning.optimizer_type} needs no schedule: lr_scheduler = {learning.lr_scheduler} "
            "and lr_warmup_steps have no effect; optimizer_args = warmup_steps=… gives a warmup"
        )
    if not sets_its_own_rate(learning) and not is_schedule_free(learning):
        yield from _without_effect(learning)
    if not has_kernels(network) and (network.conv_alpha is not None or network.conv_block_alphas.strip()):
        yield "an alpha of the convolutions is set and no conv_dim: the 3×3 convolutions are not trained"
    if learning.lr_scheduler in ("cosine_with_min_lr",) and learning.lr_scheduler_min_lr_ratio is None:
        yield "lr_scheduler = cosine_with_min_lr has no lr_scheduler_min_lr_ratio: the rate falls to 0, as cosine does"


def _without_effect(learning: LearningSettings) -> Iterable[str]:
    """Settings of other schedules than the one that is chosen."""
    schedule = learning.lr_scheduler.strip()
    acting = _RESTARTS if schedule.rpartition(".")[2] == GUIDES_RESTARTS else schedule
    for name, schedules in _ACTS_ON.items():
        value = getattr(learning, name)
        if value == getattr(LearningSettings, name) or acting in schedules:
            continue
        those = ", ".join(schedules) if len(schedules) < 5 else "the named schedules"
        yield f"{name} = {value:g} has no effect with lr_scheduler = {schedule}: it acts on {those}"
