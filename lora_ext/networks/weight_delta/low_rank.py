"""LoRA, LoCon and DyLoRA (arXiv 2106.09685): ΔW = alpha / rank · up @ down, with a Tucker core between them or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from lora_ext.networks.weight_delta.module import LowRankFactors, ModuleDelta, exact_matmul, on, rows
from lora_ext.networks.weight_delta.stored import Stored, check_pointwise, check_rank, damaged

SUFFIXES = frozenset({"lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"})
BIAS_SUFFIX = "lora_up.bias"
RESIDUAL_SUFFIXES = frozenset({"bias_indices", "bias_values", "bias_size"})


class LoraDelta(ModuleDelta):
    """Two factors of a weight, (out, rank) and (rank, in·kh·kw), with the core (rank, rank, kh, kw) multiplied in."""

    algorithm = "LoRA"

    def __init__(self, stored: Stored) -> None:
        self._up = stored.need("lora_up.weight", 2, 4)
        self._down = stored.need("lora_down.weight", 2, 4)
        self._core = stored.get("lora_mid.weight", 4)
        check_pointwise("lora_up.weight", self._up)
        if self._core is None:
            self._rank = check_rank(self._up.shape[1], self._down.shape[0])
            kernel = self._down.shape[2:]
        else:
            check_pointwise("lora_down.weight", self._down)
            check_rank(self._up.shape[1], self._core.shape[0])
            self._rank = check_rank(self._down.shape[0], self._core.shape[1])
            kernel = self._core.shape[2:]
        if self._down.ndim == 4 or self._core is not None:
            self.algorithm = "LoCon" if prod(kernel) != 1 else "LoRA"
        self._shape = (self._up.shape[0], self._down.shape[1], *kernel)
        self._scale = stored.scale(self._rank)
        bias = stored.get(BIAS_SUFFIX, 1)
        self.bias = None if bias is None else bias.float() * self._scale

    @property
    def rank(self) -> int | None:
        """The number of rows of down."""
        return self._rank

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """(out, in, kh, kw) of the factors, whatever the weight."""
        return self._shape

    @cached_property
    def factors(self) -> LowRankFactors:
        """Both factors as matrices; the core is multiplied into down the first time that they are asked for."""
        down = rows(self._down) if self._core is None else rows(_with_core(self._core, self._down))
        return LowRankFactors(rows(self._up), down, self._scale, self._shape)

    @property
    def low_rank(self) -> LowRankFactors | None:
        """Its factors."""
        return self.factors

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The product of the factors, of their first `dyn` ranks where that is given."""
        factors = self.factors
        up = on(base, factors.up[:, :dyn]) * (factors.scale * multiplier)
        return up @ on(base, factors.down[:dyn])


class SparseLoraDelta(LoraDelta):
    """An extracted LoRA with the largest numbers of what it does not reach, as LyCORIS' old extraction stored them."""

    algorithm = "LoRA"

    def __init__(self, stored: Stored) -> None:
        super().__init__(stored)
        size = stored.need("bias_size", 1).tolist()
        indices, values = stored.need("bias_indices", 2), stored.need("bias_values", 1)
        if tuple(size) not in (self._shape, (self._shape[0], prod(self._shape[1:]))):
            raise damaged(f"bias_size {size} is not the shape of the weight {self._shape}")
        if indices.shape != (len(size), len(values)) or not _are_inside(indices, size):
            raise damaged(f"bias_indices {tuple(indices.shape)} do not lie in a weight of {size}")
        self._indices, self._values, self._size = indices.long(), values, tuple(size)

    @property
    def low_rank(self) -> LowRankFactors | None:
        """None: the residual has full rank."""
        return None

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The product of the factors, and the residual under the same scale."""
        change = super().weight_change(base, multiplier, dyn).reshape(self._size)
        values = on(base, self._values) * (self._scale * multiplier)
        return change.index_put(tuple(self._indices.to(base.device)), values, accumulate=True)


def _are_inside(indices: Tensor, size: Sequence[int]) -> bool:
    limits = torch.tensor(size)[:, None]
    return not indices.is_floating_point() and bool(((indices >= 0) & (indices < limits)).all())


@torch.no_grad()
def _with_core(core: Tensor, down: Tensor) -> Tensor:
    """Tucker core (r, s, kh, kw) times down (s, in): (r, in, kh, kw) in fp32."""
    with exact_matmul():
        return torch.einsum("rshw,si->rihw", core.float(), rows(down).float())
