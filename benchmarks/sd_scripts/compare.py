"""How far two runs are from each other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.sd_scripts.cases import Limits
from lora_ext.networks.weight_delta import weight_delta


@dataclass(frozen=True)
class Difference:
    """The largest relative difference of losses; of trained modules' ΔW the median, the largest, and whose that is."""

    loss: float
    median: float
    maximum: float
    worst_module: str

    def within(self, limits: Limits) -> bool:
        """Whether every figure passes; what is not a number does not."""
        return self.loss <= limits.loss and self.median <= limits.median and self.maximum <= limits.maximum


def loss_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest |a − b| / |b| over the steps."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} losses of ours and {len(theirs)} of theirs cannot be compared")
    return max(abs(our - their) / abs(their) for our, their in zip(ours, theirs, strict=True))


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A network's tensors by module key and suffix."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, suffix = name.partition(".")
        modules.setdefault(key, {})[suffix] = tensor
    return modules


def delta_differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """‖ΔW − ΔW′‖ / ‖ΔW′‖ of every module, ΔW′ being theirs; 0 where neither was trained."""
    our_modules, their_modules = by_module(ours), by_module(theirs)
    if set(our_modules) != set(their_modules):
        only = sorted(set(our_modules) ^ set(their_modules))
        raise ValueError(f"{len(only)} modules are in one network only, such as {', '.join(only[:3])}")
    return {key: _relative(weight_delta(our_modules[key]), weight_delta(their_modules[key])) for key in our_modules}


def _relative(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"ΔW is {tuple(ours.shape)} here and {tuple(theirs.shape)} there")
    length, distance = float(theirs.double().norm()), float((ours.double() - theirs.double()).norm())
    if distance == 0.0:
        return 0.0
    return distance / length if length else math.inf


def difference(
    our_losses: Sequence[float],
    their_losses: Sequence[float],
    our_tensors: Mapping[str, Tensor],
    their_tensors: Mapping[str, Tensor],
) -> Difference:
    """The difference of two runs by their losses and their networks' tensors in fp32."""
    deltas = delta_differences(our_tensors, their_tensors)
    worst = max(deltas, key=lambda key: deltas[key])
    loss = loss_difference(our_losses, their_losses)
    return Difference(loss, statistics.median(deltas.values()), deltas[worst], worst)
