"""How far the networks that two programs wrote are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from lora_ext.networks.file import read_network
from lora_ext.networks.weight_delta import module_delta


def ranks(path: Path) -> dict[str, int]:
    """The rank of each module of a LoRA file, by key."""
    return {key: int(tensors["lora_down.weight"].shape[0]) for key, tensors in read_network(path).modules.items()}


def delta_pairs(left: Path, right: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module key, ΔW, ΔW′) in fp64, one module at a time; ValueError where a module is in one file only."""
    ours, theirs = read_network(left).modules, read_network(right).modules
    only = sorted(set(ours) ^ set(theirs))
    if only:
        raise ValueError(f"{len(only)} modules are in one of {left.name} and {right.name} only, such as {only[0]}")
    for key in ours:
        yield key, _delta(ours[key]), _delta(theirs[key])


def largest_difference(left: Path, right: Path) -> float:
    """The largest ‖ΔW − ΔW′‖ / ‖ΔW′‖ of all modules, ΔW′ being those of `right`."""
    found = [_relative(one, other) for _, one, other in delta_pairs(left, right)]
    return max(found)


def _delta(tensors: dict[str, Tensor]) -> Tensor:
    factors = module_delta(tensors).low_rank
    if factors is None:
        raise ValueError("not a low-rank module")
    return factors.scale * (factors.up.double() @ factors.down.double())


def _relative(one: Tensor, other: Tensor) -> float:
    length, distance = float(other.norm()), float((one - other).norm())
    return 0.0 if distance == 0.0 else distance / length if length else math.inf
