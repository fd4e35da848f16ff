"""What the settings of precision, saving and first weights must keep to among each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_ext.config.groups import NetworkSettings
    from lora_ext.config.train_config import TrainConfig

Contradiction = tuple[tuple[str, ...], str]

_NO_FILE_NAME = '<>:"/\\|?*\n'


def base_networks(settings: NetworkSettings) -> list[tuple[str, float]]:
    """The networks to merge into the base, each with its multiplier; ValueError where one is no number."""
    names = [line.strip() for line in settings.base_weights.splitlines() if line.strip()]
    numbers = [float(text) for text in settings.base_weights_multiplier.replace(",", " ").split()]
    return list(zip(names, numbers + [1.0] * (len(names) - len(numbers)), strict=False))


def run_contradictions(config: TrainConfig) -> Iterable[Contradiction]:
    """Values that fight each other: (names involved, what is wrong and what to set)."""
    network, memory, saving = config.network, config.memory, config.saving
    if memory.full_bf16 and memory.mixed_precision != "bf16":
        yield (
            ("full_bf16", "mixed_precision"),
            f"full_bf16 is on and mixed_precision = {memory.mixed_precision}: set the latter to bf16",
        )
    if network.dim_from_weights and not network.network_weights.strip() and not saving.resume.strip():
        yield (
            ("dim_from_weights", "network_weights"),
            "dim_from_weights is on and network_weights is empty: name a file there, or switch dim_from_weights off",
        )
    if any(sign in saving.log_prefix for sign in _NO_FILE_NAME):
        yield (
            ("log_prefix",),
            f"log_prefix = {saving.log_prefix!r}: it begins a folder's name, which cannot hold any of "
            f"{' '.join(_NO_FILE_NAME.strip())}; the folder above it is logging_dir",
        )
    yield from _base_weights(network)


def _base_weights(network: NetworkSettings) -> Iterable[Contradiction]:
    names = ("base_weights_multiplier", "base_weights")
    try:
        base_networks(network)
    except ValueError:
        text = network.base_weights_multiplier
        yield names, f"base_weights_multiplier = {text!r}: allowed are numbers, separated by commas"
        return
    files = len([line for line in network.base_weights.splitlines() if line.strip()])
    numbers = len(network.base_weights_multiplier.replace(",", " ").split())
    if numbers > files:
        yield (
            names,
            f"base_weights_multiplier has {numbers} numbers for {files} files in base_weights: one for each at most",
        )
