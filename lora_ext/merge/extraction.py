"""The change of one weight as two factors: how many directions of it are kept, and what is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_ext.merge.low_rank_out import factor_tensors
from lora_ext.merge.spectrum import Svd, dense_svd, squared_norm
from lora_ext.networks.weight_delta import exact_matmul

_ROWS = 1024


@dataclass(frozen=True)
class RankChoice:
    """How a module's rank follows from its singular values σ; the modes are those of LyCORIS' extraction.

    fixed: `highest`. threshold: #{σ > amount}. ratio: #{σ > amount · σ₀}. quantile: #{k: σ₀ + … + σₖ < amount · Σσ}.
    All are at least 1 and at most `highest`, where there is one.
    """

    mode: str
    highest: int | None
    amount: float = 0.0

    @property
    def needs_all(self) -> bool:
        """Whether the largest singular values alone do not tell."""
        return self.mode != "fixed"

    def most(self, limit: int) -> int:
        """The highest rank of a module that cannot have more than `limit`."""
        return limit if self.highest is None else min(self.highest, limit)

    def rank(self, values: Tensor, limit: int) -> int:
        """The rank of a module with these singular values, the largest first, that cannot have more than `limit`."""
        return min(max(self._count(values), 1), self.most(limit)) if self.needs_all else self.most(limit)

    def _count(self, values: Tensor) -> int:
        if self.mode == "threshold":
            return int((values > self.amount).sum())
        if self.mode == "ratio":
            return int((values > values[0] * self.amount).sum())
        return int((values.cumsum(0) < self.amount * values.sum()).sum())


@dataclass(frozen=True)
class Extracted:
    """lora_up.weight, lora_down.weight and alpha of a module as the file will have them, and σ as far as it is known.

    `change` is ‖ΔW‖² and `lost` ‖ΔW - up @ down‖², with the rounding of both factors.
    """

    tensors: Mapping[str, Tensor]
    singular_values: Tensor
    change: float
    lost: float

    @property
    def rank(self) -> int:
        """The number of directions that are kept."""
        return len(self.tensors["lora_down.weight"])

    @property
    def kept(self) -> float:
        """The share of ‖ΔW‖² that the factors have."""
        return 1 - self.lost / self.change


@torch.no_grad()
def extracted(
    change: Tensor, choice: RankChoice, dtype: torch.dtype, clamp: float | None = None, shown: int = 0
) -> Extracted | None:
    """The best approximation of ΔW (out, in) or (out, in, kh, kw), fp32, by a rank; None where nothing changes.

    With `clamp` up has all of σ, as in sd-scripts, and values beyond that quantile of both factors are cut off. `shown`
    singular values are computed at least.
    """
    matrix = change.flatten(1)
    size = squared_norm(matrix)
    if size == 0:
        return None
    limit = min(change.shape[:2])
    if choice.needs_all:
        values = all_singular_values(matrix)
        rank = choice.rank(values, limit)
        svd = dense_svd(matrix, rank)
    else:
        rank = choice.most(limit)
        svd = dense_svd(matrix, max(rank, shown))
        values = svd.values
    best = Svd(svd.left[:, :rank], svd.values[:rank], svd.right[:rank])
    tensors = factor_tensors(best, change.shape) if clamp is None else _clamped(best, change.shape, clamp)
    tensors = {suffix: tensor.to(dtype) for suffix, tensor in tensors.items()}
    up, down = (tensors[suffix].flatten(1).float() for suffix in ("lora_up.weight", "lora_down.weight"))
    with exact_matmul():
        lost = squared_norm(matrix.addmm(up, down, alpha=-1))
    return Extracted({suffix: each.cpu() for suffix, each in tensors.items()}, values.cpu(), size, lost)


def all_singular_values(matrix: Tensor) -> Tensor:
    """Those of a matrix (m, n) in fp32, the largest first, without their vectors: several times as fast as with them.

    By the Gram matrix of the smaller side, summed in fp64 piece by piece: those above 1e-7 of the largest are accurate
    to fp32's digits.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in tall.split(_ROWS):
        wide = rows.double()
        gram.addmm_(wide.mT, wide)
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt().float()


def _clamped(svd: Svd, shape: torch.Size, quantile: float) -> dict[str, Tensor]:
    """Factors as sd-scripts' extraction writes them."""
    whole = factor_tensors(Svd(svd.left * svd.values, torch.ones_like(svd.values), svd.right), shape)
    up, down = whole["lora_up.weight"], whole["lora_down.weight"]
    values = torch.cat([up.flatten(), down.flatten()]).cpu().numpy()
    bound = float(np.quantile(values, quantile))  # torch's takes 16 million numbers at most
    return whole | {"lora_up.weight": up.clamp(-bound, bound), "lora_down.weight": down.clamp(-bound, bound)}
