"""Diag-OFT and BOFT (arXiv 2306.07280, 2311.06243): the weight's outputs are rotated in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod

import torch
from torch import Tensor

from lora_ext.networks.weight_delta.module import ModuleDelta, on, rows
from lora_ext.networks.weight_delta.stored import Stored, damaged

SUFFIXES = frozenset({"oft_blocks", "oft_diag", "rescale", "alpha"})


class _Rotation(ModuleDelta):
    """Square blocks (…, size, size) over the outputs, and a factor for each output afterwards."""

    needs_weight = True

    def __init__(self, stored: Stored, blocks: Tensor) -> None:
        if blocks.shape[-1] != blocks.shape[-2]:
            raise damaged(f"blocks of {tuple(blocks.shape)} are not square")
        self._blocks = blocks
        self._outputs = blocks.shape[-3] * blocks.shape[-1]
        self._rescale = stored.get("rescale", 1, 2, 3, 4, 5)
        if self._rescale is not None and self._rescale.numel() != self._outputs:
            raise damaged(f"rescale {tuple(self._rescale.shape)} does not fit {self._outputs} outputs")
        self._longest = (stored.number("alpha") or 0.0) * self._outputs  # the constraint by output, as both trainers do

    @property
    def rank(self) -> int | None:
        """The size of a block."""
        return int(self._blocks.shape[-1])

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """Any weight with as many outputs."""
        return (self._outputs, *weight_shape[1:])

    def _rescaled(self, base: Tensor, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        """The rotated weight (out, in·kh·kw) with its outputs' factors, brought from 1 by the multiplier."""
        if self._rescale is None:
            return weight
        return weight * (1 + multiplier * (on(base, self._rescale).reshape(-1, 1) - 1))

    def _rotations(self, base: Tensor) -> Tensor:
        """Cayley's (I + Q)(I - Q)⁻¹ of each block, with Q = B - Bᵀ no longer than the constraint."""
        blocks = on(base, self._blocks)
        skew = blocks - blocks.transpose(-1, -2)
        length = skew.norm() + 1e-8
        if 0 < self._longest < length:
            skew = skew * (self._longest / length)
        one = torch.eye(skew.shape[-1], device=base.device)
        return torch.linalg.solve(one - skew, one + skew)  # (I - Q)⁻¹ and (I + Q) commute


class DiagOftDelta(_Rotation):
    """One rotation a block: W' = Rᵀ W. sd-scripts' `networks.oft` stores the same."""

    algorithm = "diag-OFT"

    def __init__(self, stored: Stored) -> None:
        super().__init__(stored, stored.need("oft_blocks", 3))

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """W' - W, by the multiplier."""
        return self._change(base, self._rotations(base), multiplier)

    def _change(self, base: Tensor, rotations: Tensor, multiplier: float) -> Tensor:
        untouched = rows(base.float())
        blocks = untouched.reshape(*rotations.shape[:2], -1)  # (blocks, size, in·kh·kw)
        rotated = (rotations.transpose(1, 2) @ blocks).reshape(untouched.shape)
        return (self._rescaled(base, rotated) - untouched) * multiplier


class OldOftDelta(DiagOftDelta):
    """The rotations themselves, with their factors in them, as LyCORIS 1.9 stored them."""

    def __init__(self, stored: Stored) -> None:
        _Rotation.__init__(self, stored, stored.need("oft_diag", 3))
        self._rescale = None

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """As diag-OFT's."""
        return self._change(base, on(base, self._blocks), multiplier)


class BoftDelta(_Rotation):
    """Stages (m, blocks, size, size), each rotating blocks of outputs that lie further apart than the stage before."""

    algorithm = "BOFT"

    def __init__(self, stored: Stored) -> None:
        blocks = stored.need("oft_blocks", 4)
        super().__init__(stored, blocks)
        stages, number, size, _ = blocks.shape
        if size % 2 or stages > log2(number) + 1 or number % 2 ** (stages - 1):
            raise damaged(f"oft_blocks {tuple(blocks.shape)} are no butterfly")

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """W' - W, with each stage brought from I by the multiplier, as in lycoris."""
        untouched = rows(base.float())
        rotations = self._rotations(base)
        one = torch.eye(rotations.shape[-1], device=base.device)
        weight = untouched
        for stage, rotation in enumerate(rotations):
            partly = one + multiplier * (rotation - one)
            apart = 2**stage * (rotation.shape[-1] // 2)
            mixed = _interleaved(weight, 2, apart)
            turned = partly @ mixed.reshape(*rotation.shape[:2], -1)
            weight = _interleaved(turned.reshape(weight.shape), apart, 2)
        return self._rescaled(base, weight, multiplier) - untouched


def _interleaved(weight: Tensor, first: int, second: int) -> Tensor:
    """Outputs in groups of first · second, within each group in the other order."""
    return weight.reshape(-1, first, second, prod(weight.shape[1:])).transpose(1, 2).reshape(weight.shape)
