"""LoHa and LoKr (arXiv 2108.06098, 2309.14859): ΔW as a Hadamard or Kronecker product of low-rank weights."""

from __future__ import annotations

from collections.abc import Container, Sequence
from math import prod

import torch
from torch import Tensor

from lora_ext.networks.weight_delta.module import ModuleDelta, on, rows
from lora_ext.networks.weight_delta.stored import Stored, check_rank, damaged

LOHA_SUFFIXES = frozenset(
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha"},
)
LOKR_SUFFIXES = frozenset(
    {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha"},
)


def unused(tensors: Container[str]) -> frozenset[str]:
    """Tensors of a module that mean nothing: the alpha of a LoKr of two whole weights, 10¹⁰ often, infinity in fp16."""
    return frozenset({"alpha"}) if "lokr_w1" in tensors and "lokr_w2" in tensors else frozenset()


class LowRankWeight:
    """A weight stored as factors a (m, rank) and b (rank, n·kh·kw), or with a Tucker core between them.

    With a core t (rank, rank, kh, kw) they are a (rank, m) and b (rank, n), as LyCORIS stores them.
    """

    def __init__(self, a: Tensor, b: Tensor, core: Tensor | None) -> None:
        self._a, self._b, self._core = a, b, core
        if core is None:
            self.rank = check_rank(a.shape[1], b.shape[0])
            self.shape = (a.shape[0], *b.shape[1:])
        else:
            self.rank = check_rank(b.shape[0], core.shape[1])
            check_rank(a.shape[0], core.shape[0])
            self.shape = (a.shape[1], b.shape[1], *core.shape[2:])

    def built(self, base: Tensor) -> Tensor:
        """The weight in fp32 where `base` is."""
        a, b = on(base, self._a), on(base, self._b)
        if self._core is None:
            return (a @ rows(b)).reshape(self.shape)
        inner = torch.einsum("ij...,jr->ir...", on(base, self._core), b)
        return torch.einsum("ip,ir...->pr...", a, inner)


class LohaDelta(ModuleDelta):
    """ΔW = alpha / rank · (w1_a @ w1_b) ⊙ (w2_a @ w2_b)."""

    algorithm = "LoHa"

    def __init__(self, stored: Stored) -> None:
        self._first, self._second = (
            LowRankWeight(
                stored.need(f"hada_w{number}_a", 2),
                stored.need(f"hada_w{number}_b", 2, 4),
                stored.get(f"hada_t{number}", 3, 4, 5),
            )
            for number in (1, 2)
        )
        if self._first.shape != self._second.shape:
            raise damaged(f"weights of {self._first.shape} and {self._second.shape} cannot be multiplied")
        self._scale = stored.scale(self._first.rank)

    @property
    def rank(self) -> int | None:
        """The rank of either weight; their product has up to its square."""
        return self._first.rank

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """(out, in·kh·kw), or (out, in, kh, kw) with a core, whatever the weight."""
        return self._first.shape

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The product of both weights, number by number."""
        return self._first.built(base).mul_(self._second.built(base)).mul_(self._scale * multiplier)


class LokrDelta(ModuleDelta):
    """ΔW = alpha / rank · w1 ⊗ w2, either of them stored whole or as factors; without factors the scale is 1."""

    algorithm = "LoKr"

    def __init__(self, stored: Stored) -> None:
        self._first = _whole_or_factors(stored, "lokr_w1", core=None)
        self._second = _whole_or_factors(stored, "lokr_w2", stored.get("lokr_t2", 3, 4, 5))
        first, second = self._first.shape, self._second.shape
        self._shape = (first[0] * second[0], first[1] * second[1], *second[2:])
        ranks = [each.rank for each in (self._second, self._first) if isinstance(each, LowRankWeight)]
        self._rank = ranks[0] if ranks else None
        self._scale = stored.scale(self._rank)

    @property
    def rank(self) -> int | None:
        """The rank of the factors; None where both weights are stored whole."""
        return self._rank

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """(out, in·kh·kw) or (out, in, kh, kw), whatever the weight."""
        return self._shape

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The Kronecker product over outputs and inputs; the kernel is the second weight's."""
        first = _built(self._first, base) * (self._scale * multiplier)  # (a, c): the small one
        second = _built(self._second, base)  # (b, d, …)
        a, c, b, d, kernel = *first.shape, second.shape[0], second.shape[1], prod(second.shape[2:])
        return first.reshape(a, 1, c, 1) * second.reshape(1, b, 1, d * kernel)


def _whole_or_factors(stored: Stored, name: str, core: Tensor | None) -> Tensor | LowRankWeight:
    if name in stored:
        return stored.need(name, 2, 3, 4, 5) if name == "lokr_w2" else stored.need(name, 2)
    second = (2, 3, 4, 5) if name == "lokr_w2" else (2,)
    return LowRankWeight(stored.need(f"{name}_a", 2), stored.need(f"{name}_b", *second), core)


def _built(weight: Tensor | LowRankWeight, base: Tensor) -> Tensor:
    return weight.built(base) if isinstance(weight, LowRankWeight) else on(base, weight)
