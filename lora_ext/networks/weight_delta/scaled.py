"""(IA)³ and GLoRA (arXiv 2205.05638, 2306.07967): ΔW is the untouched weight times something, plus something."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_ext.networks.weight_delta.module import ModuleDelta, on, rows
from lora_ext.networks.weight_delta.stored import Stored, check_pointwise, check_rank, damaged

IA3_SUFFIXES = frozenset({"weight", "on_input"})
GLORA_SUFFIXES = frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "alpha"})


class Ia3Delta(ModuleDelta):
    """ΔW = W · w, with a number for each output, or for each input."""

    algorithm = "(IA)³"
    needs_weight = True

    def __init__(self, stored: Stored) -> None:
        self._factors = stored.need("weight", 1, 2, 3, 4, 5).reshape(-1)
        self._on_input = bool(stored.number("on_input"))

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """Any weight with as many outputs or inputs as there are numbers."""
        outputs, *rest = weight_shape
        return (outputs, len(self._factors), *rest[1:]) if self._on_input else (len(self._factors), *rest)

    def fits(self, weight_shape: Sequence[int]) -> bool:
        """As for all kinds; a weight of one axis, as norms have it, has no inputs and outputs."""
        return len(weight_shape) > 1 and super().fits(weight_shape)

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The weight times the numbers."""
        factors = on(base, self._factors) * multiplier
        after = [1] * (base.ndim - 2)
        shape = (1, len(factors), *after) if self._on_input else (len(factors), 1, *after)
        return base.float() * factors.reshape(shape)


class GloraDelta(ModuleDelta):
    """ΔW = alpha / rank · (W A + B) with A = a1 @ a2 over the inputs and B = b1 @ b2, or with the core bm in B."""

    algorithm = "GLoRA"
    needs_weight = True

    def __init__(self, stored: Stored) -> None:
        factors = [stored.need(f"{name}.weight", 2, 4) for name in ("a1", "a2", "b1", "b2")]
        if not _is_chain(*factors):
            factors = [factors[1], factors[0], factors[3], factors[2]]  # LyCORIS before 2.0: down before up
        if not _is_chain(*factors):
            shapes = ", ".join(str(tuple(factor.shape)) for factor in factors)
            raise damaged(f"a1, a2, b1 and b2 of {shapes} do not fit each other")
        self._a1, self._a2, self._b1, self._b2 = factors
        check_pointwise("a1.weight", self._a1)
        check_pointwise("a2.weight", self._a2)
        check_pointwise("b1.weight", self._b1)
        self._core = stored.get("bm.weight", 4)
        self._rank = check_rank(self._a1.shape[1])
        kernel = self._b2.shape[2:] if self._core is None else self._core.shape[2:]
        if self._core is not None:
            check_pointwise("b2.weight", self._b2)
            check_rank(self._rank, *self._core.shape[:2])
        self._shape = (self._b1.shape[0], self._a1.shape[0], *kernel)
        self._scale = stored.scale(self._rank)

    @property
    def rank(self) -> int | None:
        """The rank of both A and B."""
        return self._rank

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """(out, in, kh, kw) of the factors, whatever the weight."""
        return self._shape

    def fits(self, weight_shape: Sequence[int]) -> bool:
        """As for all kinds; A mixes the inputs, so that there have to be as many."""
        return tuple(weight_shape[1:2]) == self._shape[1:2] and super().fits(weight_shape)

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """W A + B."""
        weight = base.float().reshape(*base.shape[:2], -1)  # (out, in, kh·kw)
        a1, a2 = rows(on(base, self._a1)), rows(on(base, self._a2))
        over_inputs = torch.einsum("oik,ir,rj->ojk", weight, a1, a2)
        return (over_inputs + self._plain(base).reshape(over_inputs.shape)) * (self._scale * multiplier)

    def _plain(self, base: Tensor) -> Tensor:
        b1, b2 = rows(on(base, self._b1)), rows(on(base, self._b2))
        if self._core is None:
            return b1 @ b2
        return torch.einsum("or,rs...,si->oi...", b1, on(base, self._core), b2)


def _is_chain(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool:
    """Whether the shapes are (in, r), (r, in), (out, r), (r, in, …)."""
    rank, inputs = a1.shape[1], a1.shape[0]
    return a2.shape[:2] == (rank, inputs) and b1.shape[1] == rank and b2.shape[:2] == (rank, inputs)
