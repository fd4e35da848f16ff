"""Values of the network, of its files and of precision that fight each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_ext.config.groups.learning import SCHEDULES

if TYPE_CHECKING:
    from lora_ext.config.train_config import TrainConfig

_Problem = tuple[tuple[str, ...], str]


def network_contradictions(config: TrainConfig) -> Iterable[_Problem]:
    """Settings of network, files and precision that exclude each other: (names involved, what to set)."""
    network, memory = config.network, config.memory
    if network.dim_from_weights and not network.network_weights.strip():
        yield (
            ("dim_from_weights", "network_weights"),
            "dim_from_weights takes the ranks of the file in network_weights, which is empty: name one, or switch "
            "dim_from_weights off",
        )
    yield from _base_weights(network.base_weights, network.base_weights_multiplier)
    if memory.full_bf16 and memory.mixed_precision != "bf16":
        yield (
            ("full_bf16", "mixed_precision"),
            f"full_bf16 computes in bf16, and mixed_precision is {memory.mixed_precision}: set mixed_precision to "
            "bf16, or switch full_bf16 off",
        )
    schedule = config.learning.lr_scheduler.strip()
    if schedule not in SCHEDULES and "." not in schedule:
        near = difflib.get_close_matches(schedule, SCHEDULES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield (
            ("lr_scheduler",),
            f"lr_scheduler = {schedule!r}: allowed are {', '.join(SCHEDULES)}, and package.Class for any other{hint}",
        )


def _base_weights(files: str, multipliers: str) -> Iterable[_Problem]:
    count = sum(bool(line.strip()) for line in files.splitlines())
    numbers = [part.strip() for part in multipliers.split(",") if part.strip()]
    try:
        for number in numbers:
            float(number)
    except ValueError:
        yield (
            ("base_weights_multiplier",),
            f"base_weights_multiplier = {multipliers!r}: allowed are numbers with commas between them, such as 1,0.5",
        )
        return
    if len(numbers) > count:
        yield (
            ("base_weights_multiplier", "base_weights"),
            f"base_weights_multiplier has {len(numbers)} numbers for {count} files in base_weights: give one for each",
        )
