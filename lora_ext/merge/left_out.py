"""What of the difference between two checkpoints a network does not hold: norms, biases, embeddings, layers, VAE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from lora_ext.checkpoint.layouts import LAYOUTS
from lora_ext.merge.checkpoint_pair import CheckpointPair, difference, same

VAE, CONVOLUTIONS = "VAE", "convolutions"
_CHUNK = 2**16  # numbers: a processor's cache holds what is widened


@dataclass
class LeftOut:
    """‖change‖² of the tensors that no module of the network is, by what they are, and those that are damaged."""

    changes: dict[str, float] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def total(self) -> float:
        """‖change‖² of all of them but the VAE's, which no network holds."""
        return sum(change for kind, change in self.changes.items() if kind != VAE)

    def described(self, total: float) -> list[str]:
        """Each kind with its share of `total`, the largest first, the VAE left out."""
        kinds = sorted(self.changes, key=lambda kind: -self.changes[kind])
        return [f"{kind} {self.changes[kind] / total:.2%}" for kind in kinds if kind != VAE and self.changes[kind]]

    def add(self, pair: CheckpointPair, names: tuple[str, str]) -> None:
        """Compare one more tensor."""
        before, after = pair.read(names)
        change = squared_change(before, after)
        if not math.isfinite(change):
            self.damaged.append(names[0])
        elif change:
            kind = kind_of(pair, names[0], before)
            self.changes[kind] = self.changes.get(kind, 0.0) + change


def kind_of(pair: CheckpointPair, name: str, tensor: Tensor) -> str:
    """What a tensor is, in a person's words."""
    part = next(part for part, prefix in LAYOUTS[pair.architecture].parts.items() if name.startswith(prefix))
    if part == "vae":
        return VAE
    if name.endswith("bias"):
        return "biases"
    if tensor.ndim < 2:
        return "norms"
    if part != "unet":
        return "embeddings" if "embedding" in name else "other layers of the text encoders"
    return CONVOLUTIONS if tensor.ndim == 4 else "other layers of the U-Net"


def squared_change(before: Tensor, after: Tensor) -> float:
    """‖after - before‖², summed in fp64 without a whole copy of either."""
    if same(before, after):
        return 0.0
    return sum(float(difference(a, b).double().square().sum()) for a, b in _chunks(before, after))


def largest_change(before: Tensor, after: Tensor) -> float:
    """max |after - before|; NaN where one of the values is."""
    if same(before, after):
        return 0.0
    found = [float(difference(a, b).abs().max()) for a, b in _chunks(before, after)]
    return math.nan if any(map(math.isnan, found)) else max(found)


def _chunks(before: Tensor, after: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(before.flatten().split(_CHUNK), after.flatten().split(_CHUNK), strict=True)
