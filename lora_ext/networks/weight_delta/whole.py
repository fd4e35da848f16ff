"""Changes stored whole: LyCORIS' full and norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lora_ext.networks.weight_delta.module import ModuleDelta, on
from lora_ext.networks.weight_delta.stored import Stored, damaged

FULL_SUFFIXES = frozenset({"diff", "diff_b"})
NORM_SUFFIXES = frozenset({"w_norm", "b_norm"})


class WholeDelta(ModuleDelta):
    """ΔW and Δb as they are stored; either may be missing."""

    def __init__(self, stored: Stored, algorithm: str, weight: str, bias: str) -> None:
        self.algorithm = algorithm
        self._change = stored.get(weight, 1, 2, 3, 4, 5)
        self.bias = stored.get(bias, 1)
        if self._change is None and self.bias is None:
            raise damaged(f"{weight} missing")

    @property
    def parameters(self) -> tuple[str, ...]:
        """What is stored."""
        return tuple(name for name, has in (("weight", self._change), ("bias", self.bias)) if has is not None)

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """The stored change's shape; where there is one of the bias alone, as many outputs."""
        if self._change is not None:
            return tuple(self._change.shape)
        return (0 if self.bias is None else len(self.bias), *weight_shape[1:])

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The stored change."""
        if self._change is None:
            raise KeyError(f"{self.algorithm} of this module has no weight")
        return on(base, self._change) * multiplier
