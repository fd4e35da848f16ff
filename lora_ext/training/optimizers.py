"""Optimizers, and the learning rate of each part of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lora_ext.config.groups import LearningSettings
from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import UserError


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rate of each part that is trained: "unet", "text_encoder"; a part with rate 0 is left out.

    Raises UserError where nothing is left to train.
    """
    learning, network = config.learning, config.network
    rates: dict[str, float] = {}
    if not network.network_train_text_encoder_only:
        rates["unet"] = learning.learning_rate if learning.unet_lr is None else learning.unet_lr
    if not network.network_train_unet_only:
        own = learning.text_encoder_lr
        rates["text_encoder"] = learning.learning_rate if own is None else own
    trained = {part: rate for part, rate in rates.items() if rate > 0}
    if not trained:
        names = ", ".join("unet_lr" if part == "unet" else "text_encoder_lr" for part in rates)
        raise UserError(f"nothing is left to train: {names} = 0; set learning_rate, or a rate of its own, above 0")
    return trained


def make_optimizer(
    parameters: Mapping[str, Sequence[nn.Parameter]], rates: Mapping[str, float], settings: LearningSettings
) -> torch.optim.Optimizer:
    """The optimizer of `settings`, one parameter group a part: group["part"] names it, group["initial_lr"] its rate."""
    if settings.optimizer_type != "AdamW":
        raise UserError(f"optimizer_type = {settings.optimizer_type!r}: allowed is AdamW")
    groups = [
        {"params": list(parameters[part]), "lr": rate, "initial_lr": rate, "part": part} for part, rate in rates.items()
    ]
    return torch.optim.AdamW(
        groups,
        betas=(0.9, 0.999),
        weight_decay=0.01 if settings.weight_decay is None else settings.weight_decay,
        foreach=True,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's rate to factor · its initial rate; returns the rates by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return {group["part"]: group["lr"] for group in optimizer.param_groups}
